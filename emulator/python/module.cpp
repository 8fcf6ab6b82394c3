// l4k_emulator_control: settings, reports and counters of the emulator for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "l4k_emulator.h"
#include "runtime/work.h"

namespace py = pybind11;
using namespace l4k::emu;

namespace {

py::dict report_dict(const Report& r) {
  py::dict d;
  d["kind"] = r.kind->name;
  d["severity"] = name_of(r.kind->severity);
  d["count"] = r.count;
  d["message"] = r.message;
  d["kernel"] = r.kernel;
  d["instruction"] = r.instruction;
  d["ptx_line"] = r.ptx_line;
  SourcePlace none, source = r.places.empty() ? none : r.places[0];
  d["file"] = source.file;
  d["line"] = source.line;
  py::list callers;
  for (size_t i = 1; i < r.places.size(); ++i) callers.append(r.places[i].text());
  d["inlined_at"] = callers;
  d["cta"] = py::make_tuple(r.cta[0], r.cta[1], r.cta[2]);
  d["warp"] = r.warp;
  d["lane"] = r.lane;
  d["address"] = r.has_address ? py::object(py::int_(r.address)) : py::object(py::none());
  d["table"] = r.table;
  d["text"] = r.text();
  return d;
}

py::object last_report() {
  const Report& r = Machine::get().report;
  return r.present ? py::object(report_dict(r)) : py::object(py::none());
}

py::list reports() {
  py::list all;
  for (const Report* r : Machine::get().reports()) all.append(report_dict(*r));
  return all;
}

py::list kinds() {
  py::list all;
  for (const FaultKind& k : kFaultKinds) {
    py::tuple row = py::make_tuple(k.name, name_of(k.severity), k.final, k.meaning);
    all.append(row);
  }
  return all;
}

py::dict counter_dict(const InstCounters& c) {
  py::dict d;
  d["issued"] = c.issued;
  d["global_bytes"] = c.global_bytes;
  d["sectors"] = c.sectors;
  d["bulk_bytes"] = c.bulk_bytes;
  d["bank_conflicts"] = c.conflicts;
  d["flop"] = c.flop;
  d["waits"] = c.waits;
  return d;
}

py::dict counters() {
  py::dict all;
  for (const auto& k : Machine::get().counters()) {
    py::dict d = counter_dict(k.total);
    d["launches"] = k.launches;
    for (const auto& [name, n] : k.issued) d[py::str("issued_" + name)] = n;
    d["distinct_read_bytes"] = k.distinct_read_bytes;
    d["distinct_written_bytes"] = k.distinct_written_bytes;
    py::dict lines;
    for (const auto& [where, c] : k.lines) lines[py::str(where)] = counter_dict(c);
    d["lines"] = lines;
    all[py::str(k.kernel)] = d;
  }
  return all;
}

// Settings by the names that the environment variable has, too.
void configure(const py::kwargs& settings) {
  std::string text = "print=0";
  auto item = [&](const std::string& key, py::handle value) {
    bool is_flag = py::isinstance<py::bool_>(value);
    std::string v = is_flag ? std::to_string(value.cast<int>()) : std::string(py::str(value));
    text += "," + key + "=" + v;
  };
  for (const auto& [key, value] : settings) {
    std::string name = py::str(key);
    if (value.is_none()) continue;
    if (name == "fp8_accumulation") name = "fp8";
    if (name != "ignore") {
      item(name, value);
      continue;
    }
    text += ",ignore=none";
    for (py::handle kind : value) item(name, kind);
  }
  if (l4k_emu_configure_text(text.c_str())) throw py::value_error(l4k_emu_refusal());
}

using Triple = std::array<uint32_t, 3>;

Triple triple(dim3 d) { return {d.x, d.y, d.z}; }

py::list listed() {
  py::list all;
  for (const ListedLaunch& l : listed_launches()) {
    py::dict d;
    d["kernel"] = readable(l.kernel);
    d["grid"] = py::tuple(py::cast(triple(l.grid)));
    d["block"] = py::tuple(py::cast(triple(l.block)));
    d["cluster"] = py::tuple(py::cast(triple(l.cluster)));
    d["shared_bytes"] = l.shared;
    d["dependent"] = l.dependent;
    all.append(d);
  }
  return all;
}

// One entry of PTX text. Arguments are the bytes of each parameter.
struct PtxKernel {
  PtxKernel(const std::string& text, const std::string& entry) {
    try {
      kernel = add_ptx_kernel(text, entry);
    } catch (const PtxError& e) {
      throw py::value_error(e.what());
    }
  }
  size_t parameters() const { return kernel->program->ptx->params.size(); }
  void launch(Triple grid, Triple block, Triple cluster, size_t shared,
              const std::vector<std::string>& arguments, std::optional<uintptr_t> stream) {
    const auto& params = kernel->program->ptx->params;
    if (arguments.size() != params.size())
      throw py::value_error(kernel->name + " takes " + std::to_string(params.size()) +
                            " arguments, got " + std::to_string(arguments.size()));
    std::vector<void*> pointers;
    for (size_t i = 0; i < params.size(); ++i) {
      if (arguments[i].size() != params[i]->bytes)
        throw py::value_error(kernel->name + ": argument " + std::to_string(i) + " has " +
                              std::to_string(params[i]->bytes) + " bytes, got " +
                              std::to_string(arguments[i].size()));
      pointers.push_back(const_cast<char*>(arguments[i].data()));
    }
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {cluster[0], cluster[1], cluster[2]};
    bool clustered = cluster[0] * cluster[1] * cluster[2] > 1;
    cudaError_t error = run(kernel, dim3(grid[0], grid[1], grid[2]),
                            dim3(block[0], block[1], block[2]), pointers.data(), shared, &attribute,
                            clustered ? 1 : 0, reinterpret_cast<cudaStream_t>(stream.value_or(0)));
    if (error == cudaSuccess && !stream && l4k_emu_synchronize() != 0)
      error = cudaErrorLaunchFailure;
    if (error == cudaSuccess) return;
    const Report& r = Machine::get().report;
    throw std::runtime_error(r.present ? r.text() : Registry::get().refusal);
  }
  Kernel* kernel;
};

}  // namespace

PYBIND11_MODULE(l4k_emulator_control, m) {
  m.doc() = "Control of the sm_90a emulator: settings, reports, counters.";
  m.def(
      "configure", &configure,
      "Changes settings: mode, seed, sms, strict, fp8_accumulation, perturb, limit, stop, suppress "
      "as docs/emulator.md has them; ignore is a list of kinds and severities.");
  py::class_<PtxKernel>(m, "PtxKernel",
                        "A kernel from PTX text, for code that comes without a host program.")
      .def(py::init<const std::string&, const std::string&>(), py::arg("text"), py::arg("entry"))
      .def_property_readonly("parameters", &PtxKernel::parameters,
                             "How many parameters the entry has.")
      .def("launch", &PtxKernel::launch, py::arg("grid"), py::arg("block"),
           py::arg("cluster") = Triple{1, 1, 1}, py::arg("shared_bytes") = 0,
           py::arg("arguments") = std::vector<std::string>{}, py::arg("stream") = py::none(),
           "Runs to the end; `arguments` are the bytes of each parameter. Raises RuntimeError with "
           "the report. On a stream, the host does not wait for it.");
  m.def("reset", &l4k_emu_reset, "Forgets the report and the counters.");
  m.def("reset_counters", [] { Machine::get().reset_counters(); });
  m.def(
      "synchronize", [] { return l4k_emu_synchronize() == 0; },
      "Finishes pending kernels; False when there is a report.");
  m.def("last_report", &last_report,
        "What ended the run, since the last reset, as a dict; or None.");
  m.def("reports", &reports,
        "Every report since the last reset, each kind once per place, with its count.");
  m.def("kinds", &kinds, "Every kind of report: name, severity, whether it is final, meaning.");
  m.def(
      "refusal", [] { return std::string(l4k_emu_refusal()); },
      "Why the last runtime call was refused.");
  m.def("counters", &counters, "Counters by kernel, with the source lines that cause traffic.");
  m.def("list_launches", &list_launches, py::arg("listed"),
        "While True, launches are checked and listed but not run; True begins an empty list.");
  m.def("listed_launches", &listed,
        "Those of the list, as dicts: kernel, grid, block, cluster, shared_bytes (static and "
        "dynamic, of a CTA), dependent.");
  m.def("counters_text", [] { return std::string(l4k_emu_counters()); });
  m.def(
      "register_range",
      [](uintptr_t p, size_t n) { l4k_emu_register_range(reinterpret_cast<void*>(p), n); },
      py::arg("address"), py::arg("bytes"),
      "Makes host memory usable by kernels, with its exact extent.");
  m.def(
      "allocate_range",
      [](uintptr_t p, size_t n, uintptr_t stream) {
        l4k_emu_allocate_range(reinterpret_cast<void*>(p), n, reinterpret_cast<void*>(stream));
      },
      py::arg("address"), py::arg("bytes"), py::arg("stream"),
      "The same, for an allocator that hands out memory on a stream.");
  m.def(
      "create_stream",
      [] {
        cudaStream_t stream = nullptr;
        if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess)
          throw std::runtime_error(Registry::get().refusal);
        return reinterpret_cast<uintptr_t>(stream);
      },
      "A non-blocking stream.");
  m.def(
      "unregister_range",
      [](uintptr_t p, size_t n) { l4k_emu_unregister_range(reinterpret_cast<void*>(p), n); },
      py::arg("address"), py::arg("bytes"));
  m.def(
      "end_range",
      [](uintptr_t p, size_t n) {
        l4k_emu_end_range(reinterpret_cast<void*>(p), n, "registered memory");
      },
      py::arg("address"), py::arg("bytes"),
      "Frees registered memory in stream order: later launches that touch it are reported.");
}
