"""Installing: what a build folder remembers, what a wheel holds, what make's environment needs."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomllib
from packaging.requirements import Requirement

from tools import build_folder, environment
from tools.nvcc import ROOT

# Stands for the kernels: one object, whose every build leaves a line in the log beside the sources.
PROJECT = """
cmake_minimum_required(VERSION 3.25)
project(tiny LANGUAGES NONE)
add_custom_command(OUTPUT object COMMAND echo built >> ${CMAKE_SOURCE_DIR}/log COMMAND
  ${CMAKE_COMMAND} -E touch object)
file(MAKE_DIRECTORY ${L4K_OUTPUT_DIR})
add_custom_target(l4kernels ALL DEPENDS object COMMAND
  ${CMAKE_COMMAND} -E touch ${L4K_OUTPUT_DIR}/libl4kernels.so)
"""


def program(path: Path, version: str) -> Path:
    """A compiler that knows its version and nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return path


class Checkout:
    """A tiny checkout with its build folder, and the tools that build it."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch) -> None:
        self.home, self.patch = home, patch
        self.tools = home / "tools"
        self.nvcc = program(self.tools / "nvcc", "V13.0.1")
        self.packages = {"torch": "2.13.0"}
        program(self.tools / "c++", "g++ 12")
        (self.tools / "ninja").symlink_to(build_folder.find_program("ninja"))
        (home / "source").mkdir()
        (home / "source" / "CMakeLists.txt").write_text(PROJECT)
        patch.delenv("CXX", raising=False)
        cmake = Path(build_folder.find_program("cmake")).parent
        path = os.environ["PATH"]
        patch.setattr(build_folder, "search_path", lambda: f"{self.tools}:{cmake}:{path}")

    def builds(self) -> int:
        """Builds; returns how often the object was built in this checkout's life."""
        source, folder = self.home / "source", self.home / "source" / "build"
        with build_folder.locked(folder):
            facts = build_folder.made_with(self.nvcc, **self.packages)
            build_folder.configure(source, folder, facts, f"-DL4K_OUTPUT_DIR={self.home}")
            build_folder.run("cmake", "--build", folder)
        return len((source / "log").read_text().splitlines())

    def choose_compiler(self) -> None:
        program(self.tools / "clang++", "clang 21")
        self.patch.setenv("CXX", "clang++")

    def move_tools(self) -> None:
        self.tools = self.tools.rename(self.home / "moved-tools")
        self.nvcc = self.tools / "nvcc"

    def move(self) -> None:
        (self.home / "source").rename(self.home.parent / "moved")
        self.home = self.home.parent
        (self.home / "moved").rename(self.home / "source")

    def interrupt(self) -> None:
        """What is left when the first configuration is ended in the middle."""
        folder = self.home / "source" / "build"
        (folder / "made_with.json").unlink()
        (folder / "CMakeCache.txt").write_text("CMAKE_GENERATOR:INTERNAL=Unix Makefiles\n")


CHANGES = {
    "another nvcc at the same path": lambda c: program(c.nvcc, "V13.0.2"),
    "another nvcc": lambda c: setattr(c, "nvcc", program(c.home / "cuda" / "nvcc", "V13.0.2")),
    "another torch": lambda c: c.packages.update(torch="2.14.0"),
    "another package": lambda c: c.packages.update(pybind11="3.1.0"),
    "another Python": lambda c: c.patch.setattr(sys, "prefix", "/opt/python"),
    "another version of Python": lambda c: c.patch.setattr(sys, "version", "3.99.0"),
    "another g++ at the same path": lambda c: program(c.tools / "c++", "g++ 15"),
    "another C++ compiler": Checkout.choose_compiler,
    "its options": lambda c: c.patch.setenv("CXX", "clang++ -m64"),
    "flags": lambda c: c.patch.setenv("CXXFLAGS", "-O1"),
    "nvcc's own flags": lambda c: c.patch.setenv("NVCC_APPEND_FLAGS", "-O1"),
    "variables of CMake": lambda c: c.patch.setenv("CMAKE_PREFIX_PATH", "/opt"),
    "a deleted environment": Checkout.move_tools,
    "a moved checkout": Checkout.move,
    "an interrupted configuration": Checkout.interrupt,
}
NO_CHANGES = {
    "nothing": lambda c: None,
    "more jobs": lambda c: c.patch.setenv("CMAKE_BUILD_PARALLEL_LEVEL", "1"),
    "a longer PATH": lambda c: c.patch.setenv("PATH", f"{os.environ['PATH']}:/opt/elsewhere"),
}


def test_a_folder_that_no_longer_fits_is_made_anew(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    checkout = Checkout(home, monkeypatch)
    assert checkout.builds() == 1
    for done, (name, change) in enumerate(CHANGES.items(), start=1):
        change(checkout)
        assert checkout.builds() == done + 1, name
    for name, change in NO_CHANGES.items():
        change(checkout)
        assert checkout.builds() == len(CHANGES) + 1, name


def test_a_folder_says_what_changed(tmp_path, monkeypatch, capfd):
    checkout = Checkout(tmp_path, monkeypatch)
    checkout.builds()
    assert "anew" not in capfd.readouterr().out
    checkout.packages["torch"] = "2.14.0"
    monkeypatch.setenv("CXXFLAGS", "-O1")
    checkout.builds()
    assert "another CXXFLAGS, another torch and is made anew" in capfd.readouterr().out


def test_two_builds_at_once_take_turns(tmp_path, capfd):
    entered = threading.Event()

    def second():
        with build_folder.locked(tmp_path):
            entered.set()

    with build_folder.locked(tmp_path):
        thread = threading.Thread(target=second, daemon=True)
        thread.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    assert "another build is at work" in capfd.readouterr().out


@pytest.mark.parametrize("missing", ["c++", "ninja"])
def test_a_missing_tool_is_named(tmp_path, monkeypatch, missing):
    checkout = Checkout(tmp_path, monkeypatch)
    (checkout.tools / missing).unlink()
    monkeypatch.setattr(build_folder, "search_path", lambda: str(checkout.tools))
    for tool in {"cmake", "ninja", "c++"} - {missing}:
        if not (checkout.tools / tool).exists():
            program(checkout.tools / tool, "1")
    with pytest.raises(SystemExit, match=rf"no {missing.replace('+', '.')} on the PATH.*CUDA=0"):
        build_folder.made_with(checkout.nvcc)


def test_a_missing_program_says_nothing():
    """The build asks git for its commit; an image that builds from a copy has none."""
    assert build_folder.capture("no-such-program", "--version") == ""


def test_a_failing_tool_ends_the_build_in_one_sentence():
    with pytest.raises(SystemExit, match=r"^l4kernels: false failed"):
        build_folder.run("false")


def build_environment(home: Path) -> dict[str, str]:
    """What pip makes for one build: this Python with a CMake and a ninja that will be deleted."""
    for package, folder in (("ninja", "BIN_DIR"), ("cmake", "CMAKE_BIN_DIR")):
        (home / package).mkdir(parents=True)
        (home / package / "__init__.py").write_text(f"{folder} = {str(home / package)!r}\n")
        (home / package / package).symlink_to(Path(build_folder.find_program(package)).resolve())
    nvcc = program(home / "nvcc", "release 13.0, V13.0.88")
    return os.environ | {"PYTHONPATH": str(home), "CUDACXX": str(nvcc), "L4K_BUILD_CUDA": ""}


def wheel(checkout: Path, into: Path, variables: dict[str, str]) -> tuple[set[str], str]:
    """Builds a wheel by pip's call; returns the names of its files and what was printed."""
    hook = f"from setuptools import build_meta as b; b.build_wheel({str(into)!r})"
    done = subprocess.run(
        [sys.executable, "-c", hook],
        cwd=checkout,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = into.glob("*.whl")
    return set(zipfile.ZipFile(made).namelist()), done.stdout


def test_one_checkout_installs_twice(tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(
        ROOT / "l4kernels", checkout / "l4kernels", ignore=lambda *_: ["lib", "checkpoint"]
    )

    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, checkout)
    (checkout / "tools").mkdir()
    shutil.copy(build_folder.__file__, checkout / "tools")
    (checkout / "CMakeLists.txt").write_text(PROJECT)
    (checkout / "l4kernels" / "py.typed").touch()
    (checkout / "l4kernels" / "old.py").touch()
    library = "l4kernels/lib/libl4kernels.so"

    variables = build_environment(tmp_path / "first")
    files, said = wheel(checkout, tmp_path / "a", variables)
    assert {library, "l4kernels/old.py", "l4kernels/py.typed", "l4kernels/demo/README.md"} <= files
    package = (checkout / "l4kernels").rglob("*")
    held = {p.relative_to(checkout).as_posix() for p in package if p.is_file()}
    assert not {name for name in held - files if "__pycache__" not in name}, "not in the wheel"
    assert "l4kernels: building the CUDA kernels with nvcc 13.0.88" in said
    for part in ("test_", "tests/", "tools/", "csrc/", "micro/", "results/", "gpu_s"):
        assert not [file for file in files if part in file], part

    shutil.rmtree(tmp_path / "first")
    (checkout / "l4kernels" / "old.py").unlink()
    variables = build_environment(tmp_path / "second")
    files, _ = wheel(checkout, tmp_path / "b", variables)
    assert library in files and "l4kernels/old.py" not in files

    files, said = wheel(checkout, tmp_path / "c", variables | {"L4K_BUILD_CUDA": "0"})
    assert library not in files and "l4kernels/lib/build.json" in files
    assert "CUDA kernels left out" in said
    assert not (checkout / "build").exists()

    make = ["setup.py", "-q", "build_ext", "--inplace", "--build-temp", "build/cmake", "--emulator"]
    subprocess.run([sys.executable, *make], cwd=checkout, env=variables, check=True, timeout=120)
    record = json.loads((checkout / "build" / "cmake" / "made_with.json").read_text())
    assert {"torch", "torch_dir", "pybind11", "nvcc", "ninja"} <= set(record)
    assert record["torch"] == metadata.version("torch")
    assert "L4K_EMULATOR:UNINITIALIZED=1" in (checkout / "build/cmake/CMakeCache.txt").read_text()
    assert (checkout / library).exists()


def test_the_image_asks_for_extras_that_there_are():
    """pip only warns of others, and of what is not copied into the image nobody does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"\.whl\)\[([\w,]+)\]", (ROOT / "Dockerfile").read_text())
    assert {*extras.split(",")} <= {*project["optional-dependencies"]}
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    assert all((ROOT / name).exists() for name in kept)
    assert {"setup.py", "pyproject.toml", "l4kernels", "csrc", "cmake", "tools"} <= kept


def test_the_demo_needs_what_it_runs_on():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *extras["cli"], *extras["vision"], "setuptools"]
    lines = [
        line.partition("#")[0].strip()
        for line in (ROOT / "requirements" / "demo.txt").read_text().splitlines()
    ]
    pinned = [Requirement(line) for line in lines if line]
    assert {r.name for r in pinned} == {Requirement(need).name for need in needs}
    for python in ("3.10", "3.11", "3.13"):
        now = [r for r in pinned if not r.marker or r.marker.evaluate({"python_version": python})]
        assert len({r.name for r in now}) == len(now) == len(needs), python
        assert all(str(r.specifier).startswith("==") for r in now)


class Recorded(environment.Environment):
    """An environment whose commands are noted in place of being run."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(folder)
        self.calls: list[str] = []
        self.fails = ""
        patch.setattr(environment, "run", self.run)

    def run(self, command: list, failure: str) -> None:
        if self.fails and command[-1].endswith(self.fails):
            raise SystemExit(failure)
        if command[2] == "venv":
            (self.folder / "bin").mkdir(parents=True, exist_ok=True)
            self.python.symlink_to(sys.executable)
            self.calls.append("venv")
        else:
            self.calls.append(Path(command[-1]).stem)

    def asked(self, *names: str, exact: bool = False) -> list[str]:
        """What make has to do for these requirements."""
        self.calls = []
        self.make(exact)
        for name in names:
            self.install(name)
        return self.calls


ALL = ("demo", "dev", "oracles")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    return Recorded(tmp_path / ".venv", monkeypatch)


def test_demo_and_test_share_an_environment_in_either_order(fresh, tmp_path, monkeypatch):
    assert fresh.asked("demo") == ["venv", "demo", ROOT.name]
    assert fresh.asked("demo") == []
    assert fresh.asked(*ALL) == ["dev", "oracles"]
    assert fresh.asked(*ALL) == fresh.asked("demo") == []
    other = Recorded(tmp_path / "other", monkeypatch)
    assert other.asked(*ALL) == ["venv", "demo", ROOT.name, "dev", "oracles"]
    assert other.asked("demo") == []


def test_an_interrupted_installation_goes_on(fresh):
    fresh.fails = "dev.txt"
    with pytest.raises(SystemExit, match="network"):
        fresh.asked(*ALL)
    fresh.fails = ""
    assert fresh.asked(*ALL) == ["dev", "oracles"]


def test_changed_requirements_are_installed(fresh, tmp_path, monkeypatch):
    root = tmp_path / "root"
    shutil.copytree(ROOT / "requirements", root / "requirements")
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, root)
    monkeypatch.setattr(environment, "ROOT", root)
    fresh.asked(*ALL)
    with open(root / "requirements" / "dev.txt", "a") as file:
        file.write("another==1.0\n")
    assert fresh.asked(*ALL) == ["dev"]
    monkeypatch.setattr(environment, "ROOT", root.rename(tmp_path / "moved"))
    assert fresh.asked("demo") == ["demo", "moved"]


def test_an_environment_that_no_longer_fits_is_made_anew(fresh, tmp_path, monkeypatch, capfd):
    fresh.asked(*ALL)
    old = fresh.folder.rename(tmp_path / "moved")
    moved = Recorded(old, monkeypatch)
    anew = ["venv", "demo", ROOT.name]
    assert moved.asked("demo") == anew
    moved.python.unlink()
    moved.python.symlink_to(tmp_path / "no such python")
    assert moved.asked("demo") == anew
    named = SimpleNamespace(version_info=(3, 99, 1), executable=sys.executable)
    monkeypatch.setattr(environment, "sys", named)
    assert moved.asked("demo") == []
    assert moved.asked("demo", exact=True) == anew
    said = capfd.readouterr().out
    for reason in ("was moved from", "has lost its Python", "PYTHON asks for 3.99"):
        assert reason in said


def test_only_what_make_made_is_deleted(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    (own / "file").touch()
    assert Recorded(own, monkeypatch).asked("demo")[0] == "venv"
    assert (own / "file").exists()
    (tmp_path / "link").symlink_to(own)
    linked = Recorded(tmp_path / "link", monkeypatch)
    assert linked.asked("demo") == []
    (own / "bin" / "python").unlink()
    assert linked.asked("demo")[0] == "venv"
    assert (own / "file").exists() and not linked.folder.is_symlink()


def test_an_old_python_is_told_in_one_sentence(fresh):
    with pytest.raises(SystemExit, match=r"expected Python 3\.10 or newer, got 3\.9 .*PYTHON="):
        environment.check((3, 9))
    fresh.asked("demo")
    fresh.write(fresh.read() | {"python": "3.10"})
    with pytest.raises(SystemExit, match=r"expected Python 3\.11 or newer for .*dev.txt"):
        fresh.install("dev")
