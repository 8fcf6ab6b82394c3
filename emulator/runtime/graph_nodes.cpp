// Nodes of graphs: adding them, asking for their parameters, changing them.
#include <cstring>

#include "runtime/graph.h"

namespace l4k::emu {

cudaError_t kernel_work(const cudaKernelNodeParams& p, KernelWork* work) {
  if (p.extra)
    return refuse(cudaErrorNotSupported,
                  "kernel nodes with `extra` are not implemented by the emulator");
  return prepare(work, p.func, p.gridDim, p.blockDim, p.kernelParams, p.sharedMemBytes, nullptr, 0);
}

cudaError_t copy_work(const cudaMemcpy3DParms& p, CopyWork* work) {
  if (p.srcArray || p.dstArray)
    return refuse(cudaErrorNotSupported,
                  "copies of CUDA arrays are not implemented by the emulator");
  *work = {p.dstPtr, p.srcPtr, p.dstPos, p.srcPos, p.extent, p.kind};
  return check(*work);
}

namespace {

cudaError_t refused() { return Registry::get().last; }

cudaError_t fill_work(const cudaMemsetParams& p, FillWork* work) {
  *work = {p, 1, p.height};
  return check(*work);
}

cudaError_t add(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* dependencies,
                size_t count, Work work) {
  Graph* g = Graphs::get().find(graph);
  if (!g || !out)
    return g ? refuse(cudaErrorInvalidValue, "a node into a null pointer") : refused();
  std::vector<GraphNode*> before;
  for (size_t i = 0; i < count; ++i) {
    GraphNode* n = Graphs::get().find(dependencies[i]);
    if (!n) return refused();
    if (n->graph != g || std::find(before.begin(), before.end(), n) != before.end())
      return refuse(cudaErrorInvalidValue,
                    "dependency " + std::to_string(i) + " is in another graph, or named twice");
    before.push_back(n);
  }
  *out = handle(g->add(std::move(work), std::move(before)));
  return cudaSuccess;
}

// The work of a node that is of this kind; null, refused.
template <typename T>
T* work_of(cudaGraphNode_t node) {
  GraphNode* n = Graphs::get().find(node);
  if (!n) return nullptr;
  T* work = std::get_if<T>(&n->work);
  if (!work) refuse(cudaErrorInvalidValue, "the node is " + name_of(n->work));
  return work;
}

std::vector<cudaLaunchAttribute> attributes_of(const LaunchAttributes& asked) {
  cudaLaunchAttribute cluster = {}, programmatic = {}, cooperative = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {asked.cluster.x, asked.cluster.y, asked.cluster.z};
  programmatic.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  programmatic.val.programmaticStreamSerializationAllowed = asked.programmatic;
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = asked.cooperative;
  return {cluster, programmatic, cooperative};
}

cudaError_t allocation_work(cudaMemAllocNodeParams* p, AllocationWork* work) {
  void* memory = p->bytesize ? Machine::get().memory.allocate(p->bytesize, Owner::graph) : nullptr;
  if (!memory)
    return refuse(p->bytesize ? cudaErrorMemoryAllocation : cudaErrorInvalidValue,
                  "an allocation node of " + std::to_string(p->bytesize) + " bytes");
  p->dptr = memory;
  *work = {memory, p->bytesize};
  return cudaSuccess;
}

}  // namespace

cudaError_t any_work(cudaGraphNodeParams& p, Work* work) {
  switch (p.type) {
    case cudaGraphNodeTypeKernel: {
      cudaKernelNodeParams k = {p.kernel.func,           p.kernel.gridDim,      p.kernel.blockDim,
                                p.kernel.sharedMemBytes, p.kernel.kernelParams, p.kernel.extra};
      return kernel_work(k, &work->emplace<KernelWork>());
    }
    case cudaGraphNodeTypeMemcpy:
      return copy_work(p.memcpy.copyParams, &work->emplace<CopyWork>());
    case cudaGraphNodeTypeMemset: {
      cudaMemsetParams m = {.dst = p.memset.dst,
                            .pitch = p.memset.pitch,
                            .value = p.memset.value,
                            .elementSize = p.memset.elementSize,
                            .width = p.memset.width,
                            .height = p.memset.height};
      return fill_work(m, &work->emplace<FillWork>());
    }
    case cudaGraphNodeTypeHost:
      return *work = HostWork{p.host.fn, p.host.userData}, cudaSuccess;
    case cudaGraphNodeTypeGraph: {
      Graph* g = Graphs::get().find(p.graph.graph);
      return g ? (*work = ChildWork{g->clone()}, cudaSuccess) : refused();
    }
    case cudaGraphNodeTypeEmpty:
      return *work = EmptyWork{}, cudaSuccess;
    case cudaGraphNodeTypeWaitEvent:
      return *work = WaitWork{p.eventWait.event}, cudaSuccess;
    case cudaGraphNodeTypeEventRecord:
      return *work = RecordWork{p.eventRecord.event}, cudaSuccess;
    case cudaGraphNodeTypeMemAlloc: {
      cudaMemAllocNodeParams a = {.bytesize = p.alloc.bytesize};
      cudaError_t e = allocation_work(&a, &work->emplace<AllocationWork>());
      p.alloc.dptr = a.dptr;
      return e;
    }
    case cudaGraphNodeTypeMemFree:
      return *work = FreeWork{p.free.dptr}, cudaSuccess;
    default:
      return refuse(cudaErrorNotSupported, "graph nodes of type " + std::to_string(int(p.type)) +
                                               " are not implemented by the emulator");
  }
}

}  // namespace l4k::emu

using namespace l4k::emu;

// Adding a node takes the same first arguments for all kinds.
#define ADD(Name, ...)                                                     \
  cudaError_t cudaGraphAdd##Name(cudaGraphNode_t* node, cudaGraph_t graph, \
                                 const cudaGraphNode_t* dependencies, size_t count, ##__VA_ARGS__)

extern "C" {

cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph,
                             const cudaGraphNode_t* dependencies, const cudaGraphEdgeData*,
                             size_t count, cudaGraphNodeParams* p) {
  Lock lock(runtime_mutex());
  Work work;
  if (cudaError_t e = any_work(*p, &work)) return e;
  return add(node, graph, dependencies, count, std::move(work));
}
ADD(KernelNode, const cudaKernelNodeParams* p) {
  Lock lock(runtime_mutex());
  KernelWork work;
  if (cudaError_t e = kernel_work(*p, &work)) return e;
  return add(node, graph, dependencies, count, std::move(work));
}
ADD(MemcpyNode, const cudaMemcpy3DParms* p) {
  Lock lock(runtime_mutex());
  CopyWork work;
  if (cudaError_t e = copy_work(*p, &work)) return e;
  return add(node, graph, dependencies, count, work);
}
ADD(MemcpyNode1D, void* dst, const void* src, size_t bytes, cudaMemcpyKind kind) {
  Lock lock(runtime_mutex());
  CopyWork work = linear_copy(dst, src, bytes, kind);
  if (cudaError_t e = check(work)) return e;
  return add(node, graph, dependencies, count, work);
}
ADD(MemcpyNodeToSymbol, const void* symbol, const void* src, size_t bytes, size_t offset,
    cudaMemcpyKind kind) {
  void* address = nullptr;
  if (cudaError_t e = cudaGetSymbolAddress(&address, symbol)) return e;
  return cudaGraphAddMemcpyNode1D(node, graph, dependencies, count,
                                  static_cast<char*>(address) + offset, src, bytes, kind);
}
ADD(MemcpyNodeFromSymbol, void* dst, const void* symbol, size_t bytes, size_t offset,
    cudaMemcpyKind kind) {
  void* address = nullptr;
  if (cudaError_t e = cudaGetSymbolAddress(&address, symbol)) return e;
  return cudaGraphAddMemcpyNode1D(node, graph, dependencies, count, dst,
                                  static_cast<char*>(address) + offset, bytes, kind);
}
ADD(MemsetNode, const cudaMemsetParams* p) {
  Lock lock(runtime_mutex());
  FillWork work;
  if (cudaError_t e = fill_work(*p, &work)) return e;
  return add(node, graph, dependencies, count, work);
}
ADD(HostNode, const cudaHostNodeParams* p) {
  Lock lock(runtime_mutex());
  return add(node, graph, dependencies, count, HostWork{p->fn, p->userData});
}
ADD(ChildGraphNode, cudaGraph_t child) {
  Lock lock(runtime_mutex());
  Graph* g = Graphs::get().find(child);
  return g ? add(node, graph, dependencies, count, ChildWork{g->clone()}) : refused();
}
ADD(EmptyNode) {
  Lock lock(runtime_mutex());
  return add(node, graph, dependencies, count, EmptyWork{});
}
ADD(EventRecordNode, cudaEvent_t event) {
  Lock lock(runtime_mutex());
  return Streams::get().find_event(event) ? add(node, graph, dependencies, count, RecordWork{event})
                                          : refused();
}
ADD(EventWaitNode, cudaEvent_t event) {
  Lock lock(runtime_mutex());
  return Streams::get().find_event(event) ? add(node, graph, dependencies, count, WaitWork{event})
                                          : refused();
}
ADD(MemAllocNode, cudaMemAllocNodeParams* p) {
  Lock lock(runtime_mutex());
  AllocationWork work;
  if (cudaError_t e = allocation_work(p, &work)) return e;
  return add(node, graph, dependencies, count, work);
}
ADD(MemFreeNode, void* memory) {
  Lock lock(runtime_mutex());
  return add(node, graph, dependencies, count, FreeWork{memory});
}

cudaError_t cudaGraphKernelNodeGetParams(cudaGraphNode_t node, cudaKernelNodeParams* p) {
  Lock lock(runtime_mutex());
  auto* w = work_of<KernelWork>(node);
  if (!w) return refused();
  *p = {w->kernel,           w->grid, w->block, static_cast<unsigned>(w->shared),
        w->arguments.data(), nullptr};
  return cudaSuccess;
}
cudaError_t cudaGraphKernelNodeSetParams(cudaGraphNode_t node, const cudaKernelNodeParams* p) {
  Lock lock(runtime_mutex());
  auto* w = work_of<KernelWork>(node);
  return w ? kernel_work(*p, w) : refused();
}
cudaError_t cudaGraphKernelNodeSetAttribute(cudaGraphNode_t node, cudaLaunchAttributeID id,
                                            const cudaLaunchAttributeValue* value) {
  Lock lock(runtime_mutex());
  auto* w = work_of<KernelWork>(node);
  if (!w) return refused();
  std::vector<cudaLaunchAttribute> attributes = attributes_of(w->asked);
  attributes.push_back({.id = id, .val = *value});
  KernelWork changed;
  if (cudaError_t e =
          prepare(&changed, w->kernel, w->grid, w->block, w->arguments.data(), w->shared,
                  attributes.data(), static_cast<unsigned>(attributes.size())))
    return e;
  *w = std::move(changed);
  return cudaSuccess;
}
cudaError_t cudaGraphKernelNodeGetAttribute(cudaGraphNode_t node, cudaLaunchAttributeID id,
                                            cudaLaunchAttributeValue* value) {
  Lock lock(runtime_mutex());
  auto* w = work_of<KernelWork>(node);
  if (!w) return refused();
  *value = {};
  for (const auto& a : attributes_of(w->asked))
    if (a.id == id) *value = a.val;
  return cudaSuccess;
}
cudaError_t cudaGraphKernelNodeCopyAttributes(cudaGraphNode_t to, cudaGraphNode_t from) {
  Lock lock(runtime_mutex());
  auto* a = work_of<KernelWork>(to);
  auto* b = a ? work_of<KernelWork>(from) : nullptr;
  return b ? (a->asked = b->asked, cudaSuccess) : refused();
}
cudaError_t cudaGraphMemcpyNodeGetParams(cudaGraphNode_t node, cudaMemcpy3DParms* p) {
  Lock lock(runtime_mutex());
  auto* w = work_of<CopyWork>(node);
  if (!w) return refused();
  *p = {.srcPos = w->src_pos,
        .srcPtr = w->src,
        .dstPos = w->dst_pos,
        .dstPtr = w->dst,
        .extent = w->extent,
        .kind = w->kind};
  return cudaSuccess;
}
cudaError_t cudaGraphMemcpyNodeSetParams(cudaGraphNode_t node, const cudaMemcpy3DParms* p) {
  Lock lock(runtime_mutex());
  auto* w = work_of<CopyWork>(node);
  return w ? copy_work(*p, w) : refused();
}
cudaError_t cudaGraphMemcpyNodeSetParams1D(cudaGraphNode_t node, void* dst, const void* src,
                                           size_t bytes, cudaMemcpyKind kind) {
  Lock lock(runtime_mutex());
  auto* w = work_of<CopyWork>(node);
  return w ? (*w = linear_copy(dst, src, bytes, kind), check(*w)) : refused();
}
cudaError_t cudaGraphMemsetNodeGetParams(cudaGraphNode_t node, cudaMemsetParams* p) {
  Lock lock(runtime_mutex());
  auto* w = work_of<FillWork>(node);
  return w ? (*p = w->params, cudaSuccess) : refused();
}
cudaError_t cudaGraphMemsetNodeSetParams(cudaGraphNode_t node, const cudaMemsetParams* p) {
  Lock lock(runtime_mutex());
  auto* w = work_of<FillWork>(node);
  return w ? fill_work(*p, w) : refused();
}
cudaError_t cudaGraphHostNodeGetParams(cudaGraphNode_t node, cudaHostNodeParams* p) {
  Lock lock(runtime_mutex());
  auto* w = work_of<HostWork>(node);
  return w ? (*p = {w->function, w->data}, cudaSuccess) : refused();
}
cudaError_t cudaGraphHostNodeSetParams(cudaGraphNode_t node, const cudaHostNodeParams* p) {
  Lock lock(runtime_mutex());
  auto* w = work_of<HostWork>(node);
  return w ? (*w = {p->fn, p->userData}, cudaSuccess) : refused();
}
cudaError_t cudaGraphChildGraphNodeGetGraph(cudaGraphNode_t node, cudaGraph_t* graph) {
  Lock lock(runtime_mutex());
  auto* w = work_of<ChildWork>(node);
  return w ? (*graph = reinterpret_cast<cudaGraph_t>(w->graph.get()), cudaSuccess) : refused();
}
cudaError_t cudaGraphEventRecordNodeGetEvent(cudaGraphNode_t node, cudaEvent_t* event) {
  Lock lock(runtime_mutex());
  auto* w = work_of<RecordWork>(node);
  return w ? (*event = w->event, cudaSuccess) : refused();
}
cudaError_t cudaGraphEventRecordNodeSetEvent(cudaGraphNode_t node, cudaEvent_t event) {
  Lock lock(runtime_mutex());
  auto* w = work_of<RecordWork>(node);
  return w ? (w->event = event, cudaSuccess) : refused();
}
cudaError_t cudaGraphEventWaitNodeGetEvent(cudaGraphNode_t node, cudaEvent_t* event) {
  Lock lock(runtime_mutex());
  auto* w = work_of<WaitWork>(node);
  return w ? (*event = w->event, cudaSuccess) : refused();
}
cudaError_t cudaGraphEventWaitNodeSetEvent(cudaGraphNode_t node, cudaEvent_t event) {
  Lock lock(runtime_mutex());
  auto* w = work_of<WaitWork>(node);
  return w ? (w->event = event, cudaSuccess) : refused();
}
cudaError_t cudaGraphMemAllocNodeGetParams(cudaGraphNode_t node, cudaMemAllocNodeParams* p) {
  Lock lock(runtime_mutex());
  auto* w = work_of<AllocationWork>(node);
  return w ? (*p = {.bytesize = w->bytes, .dptr = w->memory}, cudaSuccess) : refused();
}
cudaError_t cudaGraphMemFreeNodeGetParams(cudaGraphNode_t node, void* memory) {
  Lock lock(runtime_mutex());
  auto* w = work_of<FreeWork>(node);
  return w ? (std::memcpy(memory, &w->memory, sizeof(void*)), cudaSuccess) : refused();
}

}  // extern "C"
