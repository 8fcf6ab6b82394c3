// Graphs: work with dependencies, built by hand or captured from streams.
#pragma once

#include <set>

#include "runtime/work.h"

namespace l4k::emu {

struct GraphNode {
  Graph* graph = nullptr;
  Work work;
  std::vector<GraphNode*> dependencies;
  GraphNode* original = nullptr;  // what it was cloned from
};

// Nodes in an order that respects the dependencies, unless edges have been added since.
struct Graph {
  std::vector<std::unique_ptr<GraphNode>> nodes;
  GraphNode* add(Work work, std::vector<GraphNode*> dependencies);
  std::shared_ptr<Graph> clone() const;
  GraphNode* clone_of(const GraphNode* original) const;
  // Dependencies first; shorter than `nodes` when they form a cycle.
  std::vector<GraphNode*> order() const;
};

// What can be launched: a copy of the graph, child graphs included.
struct GraphExec {
  std::shared_ptr<Graph> graph;
  unsigned long long flags = 0;
  std::set<const GraphNode*> disabled;
  std::vector<uint32_t> lanes;
  LaneClock last;  // its previous launch, which comes first
};

struct Graphs {
  static Graphs& get();
  std::map<Graph*, std::shared_ptr<Graph>> graphs;
  std::map<GraphExec*, std::unique_ptr<GraphExec>> executables;
  cudaGraph_t add(std::shared_ptr<Graph> graph);
  // Null, with `refuse` called.
  Graph* find(cudaGraph_t handle);
  GraphNode* find(cudaGraphNode_t handle);
  GraphExec* find(cudaGraphExec_t handle);
};

inline cudaGraphNode_t handle(GraphNode* n) { return reinterpret_cast<cudaGraphNode_t>(n); }

// The machine runs a kernel that has been prepared.
cudaError_t launch(const KernelWork& work, const StreamOperationPtr& operation);
// What the parameters of a node describe, or refused.
cudaError_t kernel_work(const cudaKernelNodeParams& p, KernelWork* work);
cudaError_t copy_work(const cudaMemcpy3DParms& p, CopyWork* work);
cudaError_t any_work(cudaGraphNodeParams& p, Work* work);
cudaError_t instantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t launch_graph(GraphExec& exec, Stream& stream);

// What a stream does that is capturing, or would by this call.
cudaError_t capture_work(Stream& s, Work work);
cudaError_t capture_record(Stream& s, Event& e, unsigned flags);
cudaError_t capture_wait(Stream& s, Event& e, unsigned flags);

}  // namespace l4k::emu
