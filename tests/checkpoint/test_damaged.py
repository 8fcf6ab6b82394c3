"""The corpora of damaged checkpoints, over folders of each kind: refused by name, in time."""

import json
import shutil

import pytest

from l4kernels import Llama4Config
from l4kernels.checkpoint import formats
from tests.support.checkpoints import ALIGNED, TEXT, tensors_of, write
from tests.support.damage import Damage, Damaged, damages
from tests.support.fixtures import ROOT
from tests.support.row_fp8 import SAID, RowFp8, quantised

SIZES = {**ALIGNED, "num_hidden_layers": 2, "num_local_experts": 2}
KINDS = {"plain": (dict, 1, {}), "shards": (dict, 2, {}), "row-fp8": (quantised, 2, SAID)}


FORMS = ("awq", "compressed_tensors_act_order", "gptq", "modelopt_fp8", "modelopt_nvfp4")


@pytest.fixture(scope="module", params=[*KINDS, *FORMS])
def good(request, tmp_path_factory):
    if request.param in FORMS:
        folder, beside = tmp_path_factory.mktemp("good") / "form", ("expected.*", "decoded.*")
        return shutil.copytree(ROOT / request.param, folder, ignore=shutil.ignore_patterns(*beside))
    change, shards, said = KINDS[request.param]
    tensors = change(tensors_of(Llama4Config.from_dict({**TEXT, **SIZES})))
    return write(tmp_path_factory.mktemp("good"), tensors, shards, **SIZES, **said)


@pytest.fixture(autouse=True)
def readers(monkeypatch):
    monkeypatch.setattr(formats, "READERS", (RowFp8, *formats.READERS))


def test_damaged_files_are_refused(good, tmp_path):
    damaged = Damaged(good, tmp_path / "damaged")
    assert damaged.outcome(Damage("none", lambda folder: None, refused=False)) == "loaded"
    tried = [d for d in damages(good) if d.refused]
    assert len(tried) > 50
    for damage in tried:
        assert str(tmp_path) in damaged.outcome(damage), damage.name


def test_changed_records_load_or_are_refused(good, tmp_path):
    damaged = Damaged(good, tmp_path / "damaged")
    may_load = [d for d in damages(good) if not d.refused]
    said = "quantization_config" in json.loads((good / "config.json").read_text())
    assert (len(may_load) > 60) == said
    for damage in may_load[:: 1 + len(may_load) // 150]:
        damaged.outcome(damage)
