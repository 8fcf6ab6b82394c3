// Graphs themselves: handles, copies, order, launch.
#include "runtime/graph.h"

namespace l4k::emu {

Graphs& Graphs::get() {
  static auto* graphs = new Graphs;
  return *graphs;
}

GraphNode* Graph::add(Work work, std::vector<GraphNode*> dependencies) {
  auto node = std::make_unique<GraphNode>();
  node->graph = this;
  node->work = std::move(work);
  node->dependencies = std::move(dependencies);
  nodes.push_back(std::move(node));
  return nodes.back().get();
}

// Parameters are found by pointers into themselves.
static Work copy_of(const Work& work) {
  Work copy = work;
  if (auto* kernel = std::get_if<KernelWork>(&copy)) {
    const auto& from = std::get<KernelWork>(work);
    for (auto& a : kernel->arguments)
      a = kernel->params.data() + (static_cast<uint8_t*>(a) - from.params.data());
  }
  if (auto* child = std::get_if<ChildWork>(&copy)) child->graph = child->graph->clone();
  return copy;
}

std::shared_ptr<Graph> Graph::clone() const {
  auto copy = std::make_shared<Graph>();
  std::map<const GraphNode*, GraphNode*> clones;
  for (const auto& n : nodes) {
    clones[n.get()] = copy->add(copy_of(n->work), {});
    clones[n.get()]->original = n.get();
  }
  for (const auto& n : nodes)
    for (const GraphNode* d : n->dependencies)
      clones[n.get()]->dependencies.push_back(clones.at(d));
  return copy;
}

GraphNode* Graph::clone_of(const GraphNode* original) const {
  for (const auto& n : nodes)
    if (n->original == original) return n.get();
  refuse(cudaErrorInvalidValue, "the node was not in the graph when it was copied");
  return nullptr;
}

std::vector<GraphNode*> Graph::order() const {
  std::vector<GraphNode*> sorted;
  std::map<const GraphNode*, bool> done;
  for (bool found = true; found && sorted.size() < nodes.size();) {
    found = false;
    for (const auto& n : nodes) {
      if (done[n.get()] || !std::all_of(n->dependencies.begin(), n->dependencies.end(),
                                        [&](const GraphNode* d) { return done[d]; }))
        continue;
      done[n.get()] = found = true;
      sorted.push_back(n.get());
    }
  }
  return sorted;
}

cudaGraph_t Graphs::add(std::shared_ptr<Graph> graph) {
  Graph* raw = graph.get();
  graphs[raw] = std::move(graph);
  return reinterpret_cast<cudaGraph_t>(raw);
}

Graph* Graphs::find(cudaGraph_t handle) {
  auto* graph = reinterpret_cast<Graph*>(handle);
  if (graphs.contains(graph)) return graph;
  for (const auto& c : Streams::get().captures)
    if (c->graph == graph) return graph;
  for (const auto& [key, g] : graphs)
    for (const auto& n : g->nodes)
      if (auto* child = std::get_if<ChildWork>(&n->work); child && child->graph.get() == graph)
        return graph;
  refuse(cudaErrorInvalidValue, "not a graph, or one that has been destroyed");
  return nullptr;
}

GraphNode* Graphs::find(cudaGraphNode_t handle) {
  auto* node = reinterpret_cast<GraphNode*>(handle);
  auto in = [&](const Graph& g) {
    return std::any_of(g.nodes.begin(), g.nodes.end(),
                       [&](const auto& n) { return n.get() == node; });
  };
  for (const auto& [key, g] : graphs) {
    if (in(*g)) return node;
    for (const auto& n : g->nodes)
      if (auto* child = std::get_if<ChildWork>(&n->work); child && in(*child->graph)) return node;
  }
  for (const auto& c : Streams::get().captures)
    if (in(*c->graph)) return node;
  refuse(cudaErrorInvalidValue, "not a node of a graph, or one that has been destroyed");
  return nullptr;
}

GraphExec* Graphs::find(cudaGraphExec_t handle) {
  auto it = executables.find(reinterpret_cast<GraphExec*>(handle));
  if (it != executables.end()) return it->second.get();
  refuse(cudaErrorInvalidValue, "not an executable graph, or one that has been destroyed");
  return nullptr;
}

// Whether some of these nodes may run side by side.
static bool branches(const std::vector<GraphNode*>& order) {
  for (size_t i = 0; i < order.size(); ++i) {
    const auto& before = order[i]->dependencies;
    if (i ? before != std::vector{order[i - 1]} : !before.empty()) return true;
    if (std::holds_alternative<ChildWork>(order[i]->work)) return true;
  }
  return false;
}

cudaError_t instantiate(cudaGraphExec_t* exec, cudaGraph_t handle, unsigned long long flags) {
  Graph* g = Graphs::get().find(handle);
  if (!g) return Registry::get().last;
  constexpr unsigned long long kKnown = cudaGraphInstantiateFlagAutoFreeOnLaunch |
                                        cudaGraphInstantiateFlagUpload |
                                        cudaGraphInstantiateFlagUseNodePriority;
  if (!exec || (flags & ~kKnown))
    return refuse(cudaErrorInvalidValue,
                  "cudaGraphInstantiate: flags " + std::to_string(flags) +
                      " are not implemented by the emulator (launch from the device is not)");
  const std::vector<GraphNode*> order = g->order();
  if (order.size() != g->nodes.size())
    return refuse(cudaErrorInvalidValue, "cudaGraphInstantiate: the graph has a cycle");
  if (branches(order)) Machine::get().order.follow();
  auto made = std::make_unique<GraphExec>();
  made->graph = g->clone();
  made->flags = flags;
  GraphExec* raw = made.get();
  Graphs::get().executables[raw] = std::move(made);
  *exec = reinterpret_cast<cudaGraphExec_t>(raw);
  return cudaSuccess;
}

namespace {

// One launch of a graph: a lane for every branch, clocks by node.
class GraphLaunch {
 public:
  GraphLaunch(GraphExec& exec, Stream& stream) : exec_(exec), stream_(stream) {}

  // Performs the nodes after `start`; what then has ended.
  cudaError_t run(const Graph& graph, LaneClock start, LaneClock* end) {
    std::map<const GraphNode*, Place> places;
    *end = start;
    for (GraphNode* n : graph.order()) {
      Place place{start, -1};
      for (const GraphNode* d : n->dependencies) {
        Place& before = places.at(d);
        join(place.clock, before.clock);
        if (place.lane < 0) std::swap(place.lane, before.lane);  // goes on in its lane
      }
      if (cudaError_t e = perform_node(*n, &place)) return e;
      join(*end, place.clock);
      places[n] = std::move(place);
    }
    return cudaSuccess;
  }

 private:
  struct Place {
    LaneClock clock;
    int64_t lane;  // below 0: another node goes on in it
  };

  cudaError_t perform_node(const GraphNode& n, Place* place) {
    if (exec_.disabled.contains(&n)) return cudaSuccess;
    if (const auto* child = std::get_if<ChildWork>(&n.work)) {
      LaneClock start = place->clock;
      return run(*child->graph, start, &place->clock);
    }
    if (const auto* wait = std::get_if<WaitWork>(&n.work))
      if (const Event* e = Streams::get().find_event(wait->event)) join(place->clock, e->clock);
    if (place->lane < 0) place->lane = next_lane();
    auto lane = static_cast<uint32_t>(place->lane);
    auto op = std::make_shared<StreamOperation>();
    if (place->clock.size() <= lane) place->clock.resize(lane + 1);
    op->lane = lane;
    op->tick = ++tick(lane);
    place->clock[lane] = op->tick;
    op->after = place->clock;
    op->kind = kind_of(n.work);
    op->name = name_of(n.work) + " of a graph on " + stream_.name();
    return perform(n.work, op);
  }

  uint32_t next_lane() {
    if (used_ == exec_.lanes.size()) exec_.lanes.push_back(Machine::get().order.new_lane());
    return exec_.lanes[used_++];
  }
  uint64_t& tick(uint32_t lane) {
    if (exec_.last.size() <= lane) exec_.last.resize(lane + 1);
    return exec_.last[lane];
  }

  GraphExec& exec_;
  Stream& stream_;
  size_t used_ = 0;
};

}  // namespace

cudaError_t launch_graph(GraphExec& exec, Stream& stream) {
  Streams& all = Streams::get();
  StreamOperationPtr begin = all.begin(stream, "a graph's launch");
  LaneClock start = begin->after, end;
  join(start, exec.last);
  cudaError_t e = GraphLaunch(exec, stream).run(*exec.graph, start, &end);
  join(stream.clock, end);
  exec.last = end;
  return e;
}

}  // namespace l4k::emu
