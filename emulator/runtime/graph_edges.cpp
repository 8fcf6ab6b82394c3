// Graphs as a whole, and what connects their nodes.
#include <fstream>

#include "runtime/graph.h"

using namespace l4k::emu;

namespace {

cudaError_t refused() { return Registry::get().last; }

// As many as there is room for, or their number.
cudaError_t give(const std::vector<GraphNode*>& nodes, cudaGraphNode_t* out, size_t* count) {
  if (out)
    for (size_t i = 0; i < *count; ++i) out[i] = i < nodes.size() ? handle(nodes[i]) : nullptr;
  *count = out ? std::min(*count, nodes.size()) : nodes.size();
  return cudaSuccess;
}

std::vector<GraphNode*> dependents(const GraphNode& node) {
  std::vector<GraphNode*> list;
  for (const auto& n : node.graph->nodes)
    if (std::find(n->dependencies.begin(), n->dependencies.end(), &node) != n->dependencies.end())
      list.push_back(n.get());
  return list;
}

cudaGraphNodeType type_of(const Work& work) {
  static constexpr cudaGraphNodeType kTypes[] = {
      cudaGraphNodeTypeEmpty,     cudaGraphNodeTypeKernel,   cudaGraphNodeTypeMemcpy,
      cudaGraphNodeTypeMemset,    cudaGraphNodeTypeHost,     cudaGraphNodeTypeEventRecord,
      cudaGraphNodeTypeWaitEvent, cudaGraphNodeTypeMemAlloc, cudaGraphNodeTypeMemFree,
      cudaGraphNodeTypeGraph};
  static_assert(std::size(kTypes) == std::variant_size_v<Work>);
  return kTypes[work.index()];
}

}  // namespace

extern "C" {

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned flags) {
  Lock lock(runtime_mutex());
  if (!graph || flags) return refuse(cudaErrorInvalidValue, "cudaGraphCreate: flags must be 0");
  *graph = Graphs::get().add(std::make_shared<Graph>());
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  Lock lock(runtime_mutex());
  Graph* g = Graphs::get().find(graph);
  return g ? (Graphs::get().graphs.erase(g), cudaSuccess) : refused();
}
cudaError_t cudaGraphClone(cudaGraph_t* clone, cudaGraph_t graph) {
  Lock lock(runtime_mutex());
  Graph* g = Graphs::get().find(graph);
  return g ? (*clone = Graphs::get().add(g->clone()), cudaSuccess) : refused();
}
cudaError_t cudaGraphNodeFindInClone(cudaGraphNode_t* found, cudaGraphNode_t original,
                                     cudaGraph_t clone) {
  Lock lock(runtime_mutex());
  Graph* g = Graphs::get().find(clone);
  GraphNode* n = g ? g->clone_of(reinterpret_cast<GraphNode*>(original)) : nullptr;
  return n ? (*found = handle(n), cudaSuccess) : refused();
}
cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  Lock lock(runtime_mutex());
  GraphNode* n = Graphs::get().find(node);
  return n ? (*type = type_of(n->work), cudaSuccess) : refused();
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  Lock lock(runtime_mutex());
  Graph* g = Graphs::get().find(graph);
  if (!g) return refused();
  std::vector<GraphNode*> list;
  for (const auto& n : g->nodes) list.push_back(n.get());
  return give(list, nodes, count);
}
cudaError_t cudaGraphGetRootNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  Lock lock(runtime_mutex());
  Graph* g = Graphs::get().find(graph);
  if (!g) return refused();
  std::vector<GraphNode*> list;
  for (const auto& n : g->nodes)
    if (n->dependencies.empty()) list.push_back(n.get());
  return give(list, nodes, count);
}
cudaError_t cudaGraphGetEdges(cudaGraph_t graph, cudaGraphNode_t* from, cudaGraphNode_t* to,
                              cudaGraphEdgeData* data, size_t* count) {
  Lock lock(runtime_mutex());
  Graph* g = Graphs::get().find(graph);
  if (!g) return refused();
  std::vector<GraphNode*> before, after;
  for (const auto& n : g->nodes)
    for (GraphNode* d : n->dependencies) before.push_back(d), after.push_back(n.get());
  if (data) std::fill_n(data, std::min(*count, before.size()), cudaGraphEdgeData{});
  size_t room = *count;
  give(before, from, &room);
  return give(after, to, count);
}
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t* nodes,
                                         cudaGraphEdgeData* data, size_t* count) {
  Lock lock(runtime_mutex());
  GraphNode* n = Graphs::get().find(node);
  if (!n) return refused();
  if (data) std::fill_n(data, std::min(*count, n->dependencies.size()), cudaGraphEdgeData{});
  return give(n->dependencies, nodes, count);
}
cudaError_t cudaGraphNodeGetDependentNodes(cudaGraphNode_t node, cudaGraphNode_t* nodes,
                                           cudaGraphEdgeData* data, size_t* count) {
  Lock lock(runtime_mutex());
  GraphNode* n = Graphs::get().find(node);
  if (!n) return refused();
  std::vector<GraphNode*> list = dependents(*n);
  if (data) std::fill_n(data, std::min(*count, list.size()), cudaGraphEdgeData{});
  return give(list, nodes, count);
}
cudaError_t cudaGraphAddDependencies(cudaGraph_t graph, const cudaGraphNode_t* from,
                                     const cudaGraphNode_t* to, const cudaGraphEdgeData*,
                                     size_t count) {
  Lock lock(runtime_mutex());
  Graph* g = Graphs::get().find(graph);
  if (!g) return refused();
  for (size_t i = 0; i < count; ++i) {
    GraphNode* a = Graphs::get().find(from[i]);
    GraphNode* b = a ? Graphs::get().find(to[i]) : nullptr;
    if (!b) return refused();
    auto& list = b->dependencies;
    if (a->graph != g || b->graph != g || std::find(list.begin(), list.end(), a) != list.end())
      return refuse(cudaErrorInvalidValue,
                    "edge " + std::to_string(i) + " leaves the graph, or is there already");
    list.push_back(a);
  }
  return cudaSuccess;
}
cudaError_t cudaGraphRemoveDependencies(cudaGraph_t graph, const cudaGraphNode_t* from,
                                        const cudaGraphNode_t* to, const cudaGraphEdgeData*,
                                        size_t count) {
  Lock lock(runtime_mutex());
  if (!Graphs::get().find(graph)) return refused();
  for (size_t i = 0; i < count; ++i) {
    GraphNode* a = Graphs::get().find(from[i]);
    GraphNode* b = a ? Graphs::get().find(to[i]) : nullptr;
    if (!b) return refused();
    if (!std::erase(b->dependencies, a))
      return refuse(cudaErrorInvalidValue, "edge " + std::to_string(i) + " is not in the graph");
  }
  return cudaSuccess;
}
cudaError_t cudaGraphDestroyNode(cudaGraphNode_t node) {
  Lock lock(runtime_mutex());
  GraphNode* n = Graphs::get().find(node);
  if (!n) return refused();
  for (GraphNode* d : dependents(*n)) std::erase(d->dependencies, n);
  std::erase_if(n->graph->nodes, [&](const auto& other) { return other.get() == n; });
  return cudaSuccess;
}
cudaError_t cudaGraphDebugDotPrint(cudaGraph_t graph, const char* path, unsigned) {
  Lock lock(runtime_mutex());
  Graph* g = Graphs::get().find(graph);
  if (!g) return refused();
  std::ofstream out(path);
  out << "digraph graph_of_work {\n";
  for (const auto& n : g->nodes) {
    out << "  n" << n.get() << " [label=\"" << name_of(n->work) << "\"];\n";
    for (const GraphNode* d : n->dependencies) out << "  n" << d << " -> n" << n.get() << ";\n";
  }
  out << "}\n";
  return out ? cudaSuccess : refuse(cudaErrorOperatingSystem, std::string("cannot write ") + path);
}

}  // extern "C"
