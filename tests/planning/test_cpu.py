"""How many CPU threads the command line takes, and that help needs none of torch."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import l4kernels
from l4kernels.cli import demo, generate, loading
from l4kernels.planning import cpu

ROOT = Path(__file__).parents[2]


@pytest.fixture
def machine(monkeypatch):
    """A machine of 8 cores, all of them torch's, and no setting of the user's."""
    for name in cpu.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cpu, "_quota", lambda: math.inf)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    return monkeypatch


@pytest.mark.parametrize(
    "weights, threads", [(0, 1), (7_500_000, 1), (100 << 20, 2), (256 << 20, 5), (200e9, 8)]
)
def test_threads_grow_with_the_weights(machine, weights, threads):
    assert cpu.threads_for(weights) == threads
    assert cpu.threads_for(weights, tokens=2048) == (8 if weights else 1)


def test_limits_and_settings_are_respected(machine):
    machine.setattr(os, "sched_getaffinity", lambda pid: {3, 4, 5})
    assert (cpu.usable_cores(), cpu.threads_for(math.inf)) == (3, 3)
    for quota, cores in ((2.9, 2), (0.5, 1)):
        machine.setattr(cpu, "_quota", lambda quota=quota: quota)
        assert (cpu.usable_cores(), cpu.threads_for(math.inf)) == (cores, cores)
    machine.setattr(torch, "get_num_threads", lambda: 1)  # torch.set_num_threads(1)
    machine.setattr(cpu, "_quota", lambda: math.inf)
    assert cpu.threads_for(math.inf) == 1
    machine.setattr(torch, "get_num_threads", lambda: 6)
    for name in cpu.SETTINGS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, "6")
            assert cpu.threads_for(0) == 6 and cpu.report()["user_setting"] == f"{name}=6"
            patch.setenv(name, "6,2")  # of nested loops
            assert cpu.threads_for(0) == 6
            for invalid in ("", " ", "abc", "0", "-1", "2x"):
                patch.setenv(name, invalid)
                assert cpu.threads_for(0) == 1 and cpu.report()["user_setting"] is None


@pytest.mark.parametrize(
    "files, memberships, quota",
    [
        ({"cpu.max": "max 100000"}, "0::/", math.inf),
        ({"cpu.max": "100000 100000"}, "of another system", math.inf),
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 2),
        ({"cpu.max": "300000 100000"}, "0::/not/mounted/here", 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu:/", math.inf),
        (
            {"cpu/c/cpu.cfs_quota_us": "50000", "cpu/c/cpu.cfs_period_us": "100000"},
            "4:memory:/x\n3:cpu,cpuacct:/c\n0::/",
            0.5,
        ),
        ({"cpu.max": "nonsense"}, "0::/", math.inf),
        ({}, "", math.inf),
    ],
)
def test_quota_of_a_cgroup(tmp_path, files, memberships, quota):
    for name, content in files.items():
        (tmp_path / "mounts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mounts" / name).write_text(content + "\n")
    (tmp_path / "cgroup").write_text(memberships + "\n" if memberships else "")
    assert cpu._quota(tmp_path / "mounts", tmp_path / "cgroup") == quota
    assert cpu._quota(tmp_path / "mounts", tmp_path / "nowhere") == math.inf


def test_verbs_take_that_many_and_give_them_back(monkeypatch):
    taken, before = [], torch.get_num_threads()
    monkeypatch.setattr(cpu, "threads_for", lambda weights, tokens=1: 2 if weights > 1e9 else 1)

    def stop(*arguments, **options):
        taken.append(torch.get_num_threads())
        raise RuntimeError

    monkeypatch.setattr(loading.Llama4, "_load", stop)
    monkeypatch.setattr(loading, "checkpoint_bytes", lambda folder: 2e9)
    with pytest.raises(RuntimeError):
        request = generate.Request(model=demo.data.CHECKPOINT, prompt="a")
        generate.run(request, as_json=True)
    with pytest.raises(RuntimeError):
        demo.run(weights="bf16", device="cpu", seed=0, as_json=True)
    assert taken == [2, 1] and torch.get_num_threads() == before


PIP = "#!/x/python\nimport sys\nfrom l4kernels.cli import main\nsys.exit(main())\n"
OTHER = "import l4kernels, torch\nprint(torch.ops.l4kernels.silu_mul)\n"


@pytest.mark.parametrize(
    "name, text, command, spared",
    [
        ("l4k", PIP, ["python", "l4k"], True),
        ("llama", PIP, ["python", "llama"], True),
        ("l4k", "#!/bin/sh\n# " + "x" * 4096 + PIP, ["python", "l4k"], True),
        ("l4k", OTHER, ["python", "l4k"], False),
        ("-m", OTHER, ["python", "-m", "l4kernels", "--help"], True),
        ("-m", OTHER, ["python", "-m", "pytest"], False),
        ("-c", None, ["python", "-c", "from l4kernels.cli import main"], False),
        (".", None, ["python", "."], False),
        (None, None, [], False),
    ],
)
def test_only_the_program_is_spared_the_import_of_torch(
    monkeypatch, tmp_path, name, text, command, spared
):
    monkeypatch.chdir(tmp_path)
    if text:
        Path(name).write_text(text)
    monkeypatch.setattr(sys, "argv", [name] if name else [])
    monkeypatch.setattr(sys, "orig_argv", command)
    assert l4kernels._is_l4k() == spared


HELP_WITHOUT_TORCH = """
import os, sys
sys.argv = [sys.argv[1]]
import l4kernels
from l4kernels.cli import main
for arguments in (["--help"], ["--version"], ["generate", "-h"], ["plan", "scout"]):
    assert main(arguments) == 0
assert "torch" not in sys.modules and os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
for name in l4kernels.__all__:
    assert getattr(l4kernels, name) is not None
import torch
assert torch.ops.l4kernels.silu_mul.default and l4kernels.STATUS.kernels is not None
"""
IMPORT_REGISTERS = """
import sys, l4kernels, torch
torch.ops.l4kernels.silu_mul(torch.ones(1, 32))
import l4kernels.cli.demo, l4kernels.cli.env, l4kernels.cli.bench
assert "torch._dynamo" not in sys.modules  # takes as long to import as torch
from l4kernels.ops.dispatch import _compiled
marked = torch.compiler.assume_constant_result(lambda op: op)
assert vars(marked) == vars(_compiled)
"""


def run(*command):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("OMP_WAIT_POLICY", None)
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_help_needs_no_torch_and_an_import_registers_the_ops(tmp_path):
    (tmp_path / "l4k").write_text(PIP)
    run("-c", HELP_WITHOUT_TORCH, str(tmp_path / "l4k"))
    run("-c", IMPORT_REGISTERS)
    modules = run("-X", "importtime", "-m", "l4kernels", "--help")
    assert "l4kernels.cli.app" in modules and "torch" not in modules
