"""`l4k emulate`: programs of one file are compiled, run and watched; what is missing is said."""

import io
import subprocess
import sys

import pytest

from l4kernels.cli import main
from l4kernels.emulation import build, toolchain
from tools.nvcc import ROOT

pytestmark = pytest.mark.skipif(toolchain.nvcc() is None, reason="no nvcc")

PROBE = r"""#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
__global__ void right(int* out) { out[threadIdx.x] = threadIdx.x; }
__global__ void error(int* out) { out[64 + threadIdx.x] = 0; }  // line 6
__global__ void rule(int* out) {
  __shared__ volatile int s[32];
  s[threadIdx.x & 31] = 1;
  if (threadIdx.x < 32) out[threadIdx.x] = s[31 - threadIdx.x];  // line 10
}
int main(int argc, char** argv) {
  int* out;
  cudaMalloc(&out, 64 * sizeof(int));
  cudaMemset(out, 0, 64 * sizeof(int));
  for (int i = 1; i < argc; ++i) {
    const char* what = argv[i];
    if (!std::strcmp(what, "right")) right<<<1, 64>>>(out);
    if (!std::strcmp(what, "error")) error<<<1, 32>>>(out);
    if (!std::strcmp(what, "rule")) rule<<<1, 32>>>(out);
    if (!std::strcmp(what, "reset")) cudaDeviceReset();
    if (!std::strcmp(what, "signal")) std::raise(SIGSEGV);
    if (!std::strcmp(what, "status")) return std::atoi(argv[i + 1]);
    if (!std::strcmp(what, "echo"))
      for (int c; (c = std::getchar()) != EOF;) std::putchar(c);
  }
  std::printf("%s\n", argv[0]);
}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the probe, and a cache for the whole module."""
    path = tmp_path_factory.mktemp("em, ul ate")
    (path / "probe.cu").write_text(PROBE)
    return path


@pytest.fixture
def emulate(place, monkeypatch, capfd):
    """Runs the command in that folder: (exit code, standard output, standard error)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.delenv("L4K_EMU", raising=False)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["emulate", *map(str, arguments)])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def test_a_right_program_in_all_modes(emulate):
    assert emulate("probe.cu", "--", "right") == (0, "probe\n", "")
    code, out, err = emulate("--mode", "all", "--seeds", 2, "probe.cu", "--", "right")
    runs = [f"mode {mode}, seed {seed}" for mode in ("late", "early", "random") for seed in (1, 2)]
    lines = [f"emulate: {line}" for line in [*runs, "6 runs, none failed"]]
    assert (code, out, err.splitlines()) == (0, "probe\n" * 6, lines)


def test_the_exit_status_is_the_programs_or_tells_of_an_error(emulate):
    assert emulate("probe.cu", "--", "status", 7) == (7, "", "")
    code, _, err = emulate("probe.cu", "--", "signal")
    assert (code, err) == (139, "emulate: the program was ended by SIGSEGV\n")
    for arguments in (["error"], ["error", "reset"], ["error", "status", "0"]):
        code, _, err = emulate("probe.cu", "--", *arguments)
        assert code == 1, arguments
        assert err.startswith("l4k emulator: global-out-of-bounds") and "probe.cu:6" in err
    assert emulate("probe.cu", "--", "error", "status", 5)[0] == 5
    code, _, err = emulate("--seed", 3, "--seed", 4, "probe.cu", "--", "error")
    assert code == 1 and err.endswith("2 runs, 2 failed: mode late, seed 3; mode late, seed 4\n")


def test_what_goes_on(emulate, place):
    code, out, err = emulate("--continue", "probe.cu", "--", "error", "right")
    assert (code, out) == (1, "probe\n") and "goes on" in err
    for kind in ("error", "rule,global-out-of-bounds"):
        code, _, err = emulate("--ignore", kind, "probe.cu", "--", "error")
        assert code == 0 and "global-out-of-bounds" not in err
    code, _, err = emulate("probe.cu", "--", "rule")
    assert code == 0 and "volatile-race" in err
    assert emulate("--stop", "rule", "probe.cu", "--", "rule")[0] == 1
    (place / "accepted.txt").write_text("volatile-race probe.cu:10 # only a test\n")
    code, _, err = emulate("--suppress", "accepted.txt", "probe.cu", "--", "rule")
    assert code == 0 and "volatile-race" not in err
    code, _, err = emulate("probe.cu", "--limit", 3, "--", "right")
    assert code == 1 and "instruction-limit" in err


def test_counters_by_kernel_and_line(emulate):
    code, _, err = emulate("--counters", "probe.cu", "--", "right", "right", "reset")
    lines = err.splitlines()
    assert code == 0 and lines[0] == "right(int*): 2 launches"
    assert "  global memory      512 bytes moved = 1.00 x needed (0 read, 512 written)" in lines
    assert lines[-2].split() == ["issued", "requested", "sectors", "at"]
    assert lines[-1].split() == ["4", "512", "16", "probe.cu:5"]
    assert "no counters" in emulate("--counters", "probe.cu")[2]


def test_every_run_reads_the_same_input_and_nothing_needs_torch(place, emulate):
    emulate("probe.cu")
    command = [sys.executable, "-X", "importtime", "-m", "l4kernels.emulation", "--seeds", "2"]
    for source, status in (("probe.cu", 0), ("missing.cu", 1)):
        done = subprocess.run(
            [*command, source, "--", "echo"],
            cwd=place, input="some input\n", capture_output=True, text=True, timeout=100,
            env={"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(place / "cache"),
                 "PATH": f"{toolchain.nvcc().rpartition('/')[0]}:/usr/bin:/bin"},
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert done.stdout == ("" if status else "some input\nprobe\n" * 2)
        assert "torch" not in done.stderr and ("missing.cu: expected" in done.stderr) == bool(
            status
        )


def test_programs_are_kept_until_a_file_changes(emulate, place, monkeypatch):
    (place / "in c").mkdir()
    (place / "in c" / "status.h").write_text("#define STATUS 3\n")
    (place / "main.cpp").write_text('#include "in c/status.h"\nint f(); int main() { return f(); }')
    (place / "part.cpp").write_text('#include "status.h"\nint f() { return STATUS + MORE; }')
    command = ("main.cpp", "part.cpp", "-I", "in c", "-DMORE=1", "-o", "kept")
    assert emulate(*command)[0] == 4 == subprocess.run([place / "kept"]).returncode
    with monkeypatch.context() as patch:
        patch.setattr(build, "_compile", None)
        assert emulate(*command)[0] == 4
    (place / "in c" / "status.h").write_text("#define STATUS 5\n")
    assert emulate(*command)[0] == 6


def test_the_cache_keeps_the_latest(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "KEPT", 2)
    for age, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / build.PROGRAM).touch()
        build.os.utime(tmp_path / name, (age, age))
    build._trim(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"b", "c"}


@pytest.mark.parametrize(
    "source, said",
    [
        ("int main() { return cudaNot(); }", ['wrong.cu(1): error: identifier "cudaNot"', "above"]),
        (
            'extern "C" int cudaNot(); int f(int); int main() { return cudaNot() + f(1); }',
            ["the emulator has no cudaNot; nothing defines f(int): name its source file"],
        ),
    ],
    ids=["compile", "link"],
)
def test_a_program_that_cannot_be_made(emulate, place, source, said):
    (place / "wrong.cu").write_text(source)
    code, out, err = emulate("wrong.cu")
    assert (code, out) == (2, "") and not [text for text in said if text not in err], err
    assert not [*(place / "cache").rglob("new-*")]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("missing.cu", "missing.cu: expected a CUDA or C++ source"),
        ("probe.ptx", "PtxKernel"),
        ("probe.cu --ignore nothing", "nothing"),
        ("probe.cu --suppress a,b", "comma"),
        ("probe.cu --seed -1", "--seed: invalid"),
        ("probe.cu --mode fast", "--mode: invalid choice"),
        ("probe.cu --lte", "--lte"),
        ("", "FILE"),
    ],
)
def test_bad_arguments_are_one_line(emulate, place, arguments, said):
    (place / "probe.ptx").touch()
    code, out, err = emulate(*arguments.split())
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1, err


def test_what_is_missing_is_said(emulate, place, monkeypatch, tmp_path):
    monkeypatch.setenv("L4K_EMULATOR_LIBRARY", "elsewhere.so")
    assert "L4K_EMULATOR_LIBRARY: expected a library, got 'elsewhere.so'" in emulate("probe.cu")[2]
    monkeypatch.delenv("L4K_EMULATOR_LIBRARY")
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "ROOT", tmp_path)
        code, _, err = emulate("probe.cu")
        assert code == 2 and "make build" in err and "L4K_EMULATOR_LIBRARY" in err
    for name in ("CUDACXX", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: str(tmp_path))
    code, _, err = emulate("probe.cu")
    assert code == 2 and "no nvcc in CUDACXX, CUDA_HOME/bin, PATH" in err
