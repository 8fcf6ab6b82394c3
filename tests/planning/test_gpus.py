"""The table of GPUs: found by the driver's names, and the only place that a new one is written."""

import json

import pytest

from l4kernels.bench import command, report
from l4kernels.cli import main
from l4kernels.ops import Work
from l4kernels.planning.gpus import GPUS, Gpu, Peaks, gpu_name
from l4kernels.planning.plan import PlanError, find_gpu


@pytest.mark.parametrize(
    "device, name",
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "h100"),
    ],
)
def test_a_gpu_by_its_drivers_name(device, name):
    assert gpu_name(device) == name


@pytest.mark.parametrize(
    "device",
    ["A100", "GH200 480GB", "H20", "H100 PCIe", "H100 NVL", "H200 NVL", "H1000", ""],
)
def test_other_boards_are_not_measured_against_its_peaks(device):
    with pytest.raises(ValueError, match=r"no datasheet peaks for .*known .SXM.: h100, h200$"):
        gpu_name(f"NVIDIA {device}")


def test_a_floor_without_peaks_is_an_error():
    with pytest.raises(ValueError, match="no datasheet peaks for 'h20'"):
        GPUS["h20"].floor_us(Work(flops=1, bytes=1))


def test_what_is_usable_is_a_part_of_the_memory():
    for name, gpu in GPUS.items():
        assert name == gpu.name == name.lower() and "x" not in name  # 8xh100
        assert 0 < gpu.usable < gpu.memory


def test_a_new_gpu_is_one_entry(monkeypatch, capsys):
    new = Gpu("h300-pcie", 200e9, 190e9, 8e12, Peaks(bf16=2e15, fp8=4e15))
    monkeypatch.setitem(GPUS, new.name, new)
    assert gpu_name("NVIDIA H300 PCIe 192GB") == new.name
    with pytest.raises(ValueError, match=r"known .SXM.: h100, h200, h300-pcie$"):
        gpu_name("NVIDIA H300")
    with pytest.raises(PlanError, match=r"known: h100, .*h300-pcie"):
        find_gpu("h400")
    assert main(["plan", "scout", "--gpu", "2xh300-pcie", "--format", "fp8", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert plan["available"] == 2 * new.memory and plan["gpu"] == new.name
    assert plan["step_floor_ms"] == pytest.approx(1e3 * plan["bytes_per_step"] / 16e12)
    assert command.parse(["--gpu", new.name]).gpu == new.name
    assert main(["bench", "silu_mul", "--gpu", new.name, "--json"]) == 0
    assert f'"gpu": "{new.name}"' in capsys.readouterr().out
    row = {"ok": True, "op": "x", "gpu": new.name, "bytes": 8e6, "key": "bench.x.scout.1"}
    row |= {"median": 2.0, "floor_us": 1.0, "share_of_floor": 0.5, "peers": {}}
    page = report.page([row | {"bytes_per_second": 4e12, "name": "X", "commit": "c"}], "x")
    assert "50%" in page
