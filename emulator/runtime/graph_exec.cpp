// Graphs that can be launched.
#include "runtime/graph.h"

using namespace l4k::emu;

namespace {

GraphNode* node_of(cudaGraphExec_t exec, cudaGraphNode_t node) {
  GraphExec* e = Graphs::get().find(exec);
  GraphNode* n = e ? Graphs::get().find(node) : nullptr;
  return n ? e->graph->clone_of(n) : nullptr;
}

// Replaces a node's work; it must stay of its kind.
cudaError_t replace(cudaGraphExec_t exec, cudaGraphNode_t node, Work work) {
  GraphNode* n = node_of(exec, node);
  if (!n) return Registry::get().last;
  if (n->work.index() != work.index())
    return refuse(cudaErrorInvalidValue,
                  "the node is " + name_of(n->work) + ", not " + name_of(work));
  n->work = std::move(work);
  return cudaSuccess;
}

bool same_shape(const Graph& a, const Graph& b, cudaGraphExecUpdateResult* result, size_t* at) {
  *result = cudaGraphExecUpdateErrorTopologyChanged;
  auto index = [](const Graph& g, const GraphNode* n) {
    size_t i = 0;
    while (g.nodes[i].get() != n) ++i;
    return i;
  };
  *at = 0;
  if (a.nodes.size() != b.nodes.size()) return false;
  for (size_t i = 0; i < a.nodes.size(); ++i) {
    const GraphNode &x = *a.nodes[i], &y = *b.nodes[i];
    *at = i;
    if (x.dependencies.size() != y.dependencies.size()) return false;
    for (size_t d = 0; d < x.dependencies.size(); ++d)
      if (index(a, x.dependencies[d]) != index(b, y.dependencies[d])) return false;
    if (x.work.index() != y.work.index()) {
      *result = cudaGraphExecUpdateErrorNodeTypeChanged;
      return false;
    }
  }
  *result = cudaGraphExecUpdateSuccess;
  return true;
}

}  // namespace

extern "C" {

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags) {
  Lock lock(runtime_mutex());
  return instantiate(exec, graph, flags);
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph,
                                          unsigned long long flags) {
  return cudaGraphInstantiate(exec, graph, flags);
}
cudaError_t cudaGraphInstantiateWithParams(cudaGraphExec_t* exec, cudaGraph_t graph,
                                           cudaGraphInstantiateParams* params) {
  cudaError_t e = cudaGraphInstantiate(exec, graph, params->flags);
  params->errNode_out = nullptr;
  params->result_out = e ? cudaGraphInstantiateError : cudaGraphInstantiateSuccess;
  return e;
}
cudaError_t cudaGraphExecGetFlags(cudaGraphExec_t exec, unsigned long long* flags) {
  Lock lock(runtime_mutex());
  GraphExec* e = Graphs::get().find(exec);
  return e ? (*flags = e->flags, cudaSuccess) : Registry::get().last;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
  Lock lock(runtime_mutex());
  return Graphs::get().find(exec) && Streams::get().find(stream) ? status() : Registry::get().last;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  Lock lock(runtime_mutex());
  GraphExec* e = Graphs::get().find(exec);
  Stream* s = e ? Streams::get().find(stream) : nullptr;
  if (!s) return Registry::get().last;
  if (s->capture) return capture_work(*s, ChildWork{e->graph->clone()});
  if (s->id == 0)
    if (cudaError_t error = Streams::get().forbidden_while_capturing(
            "cudaGraphLaunch", cudaErrorStreamCaptureImplicit, true))
      return error;
  if (cudaError_t error = status()) return error;
  return launch_graph(*e, *s);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  Lock lock(runtime_mutex());
  GraphExec* e = Graphs::get().find(exec);
  if (!e) return Registry::get().last;
  cudaError_t error = settle();
  Graphs::get().executables.erase(e);
  return error;
}
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo* info) {
  Lock lock(runtime_mutex());
  GraphExec* e = Graphs::get().find(exec);
  Graph* g = e ? Graphs::get().find(graph) : nullptr;
  if (!g) return Registry::get().last;
  cudaGraphExecUpdateResult result;
  size_t at = 0;
  bool same = same_shape(*e->graph, *g, &result, &at);
  if (info) {
    *info = {};
    info->result = result;
    if (!same && at < g->nodes.size()) info->errorNode = handle(g->nodes[at].get());
  }
  if (!same)
    return refuse(cudaErrorGraphExecUpdateFailure,
                  "cudaGraphExecUpdate: node " + std::to_string(at) +
                      " is not what it was when the graph was instantiated");
  e->graph = g->clone();
  e->disabled.clear();
  return cudaSuccess;
}
cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                             const cudaKernelNodeParams* p) {
  Lock lock(runtime_mutex());
  KernelWork work;
  if (cudaError_t e = kernel_work(*p, &work)) return e;
  return replace(exec, node, std::move(work));
}
cudaError_t cudaGraphExecMemcpyNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                             const cudaMemcpy3DParms* p) {
  Lock lock(runtime_mutex());
  CopyWork work;
  if (cudaError_t e = copy_work(*p, &work)) return e;
  return replace(exec, node, work);
}
cudaError_t cudaGraphExecMemcpyNodeSetParams1D(cudaGraphExec_t exec, cudaGraphNode_t node,
                                               void* dst, const void* src, size_t n,
                                               cudaMemcpyKind kind) {
  Lock lock(runtime_mutex());
  return replace(exec, node, linear_copy(dst, src, n, kind));
}
cudaError_t cudaGraphExecMemsetNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                             const cudaMemsetParams* p) {
  Lock lock(runtime_mutex());
  return replace(exec, node, FillWork{*p, 1, p->height});
}
cudaError_t cudaGraphExecHostNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                           const cudaHostNodeParams* p) {
  Lock lock(runtime_mutex());
  return replace(exec, node, HostWork{p->fn, p->userData});
}
cudaError_t cudaGraphExecChildGraphNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                 cudaGraph_t child) {
  Lock lock(runtime_mutex());
  Graph* g = Graphs::get().find(child);
  return g ? replace(exec, node, ChildWork{g->clone()}) : Registry::get().last;
}
cudaError_t cudaGraphExecEventRecordNodeSetEvent(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                 cudaEvent_t event) {
  Lock lock(runtime_mutex());
  return replace(exec, node, RecordWork{event});
}
cudaError_t cudaGraphExecEventWaitNodeSetEvent(cudaGraphExec_t exec, cudaGraphNode_t node,
                                               cudaEvent_t event) {
  Lock lock(runtime_mutex());
  return replace(exec, node, WaitWork{event});
}
cudaError_t cudaGraphExecNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                       cudaGraphNodeParams* p) {
  Lock lock(runtime_mutex());
  Work work;
  if (cudaError_t e = any_work(*p, &work)) return e;
  return replace(exec, node, std::move(work));
}
cudaError_t cudaGraphNodeSetEnabled(cudaGraphExec_t exec, cudaGraphNode_t node, unsigned enabled) {
  Lock lock(runtime_mutex());
  GraphNode* n = node_of(exec, node);
  if (!n) return Registry::get().last;
  auto& disabled = Graphs::get().find(exec)->disabled;
  if (enabled) disabled.erase(n);
  else disabled.insert(n);
  return cudaSuccess;
}
cudaError_t cudaGraphNodeGetEnabled(cudaGraphExec_t exec, cudaGraphNode_t node, unsigned* enabled) {
  Lock lock(runtime_mutex());
  GraphNode* n = node_of(exec, node);
  if (!n) return Registry::get().last;
  *enabled = !Graphs::get().find(exec)->disabled.contains(n);
  return cudaSuccess;
}

}  // extern "C"
