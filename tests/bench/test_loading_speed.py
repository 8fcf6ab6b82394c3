"""The speed of loading: that its checkpoints are ones, and its lines say what it measured."""

import re

import pytest
import torch

from bench import loading_speed

SMALL = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64}
SMALL |= {"intermediate_size": 128, "intermediate_size_mlp": 256, "num_local_experts": 2}


@pytest.mark.parametrize("kind", loading_speed.KINDS)
def test_every_kind_loads(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading_speed, "TEXT", {**loading_speed.TEXT, **SMALL})
    threads = torch.get_num_threads()
    arguments = ["loading_speed", str(tmp_path), "--only", kind, "--repeats", "1"]
    monkeypatch.setattr("sys.argv", [*arguments, "--threads", str(threads)])
    loading_speed.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(re.search(r"[\d.]+ GB/s", line) for line in lines)
    assert [line.split()[:3] for line in lines] == [
        [kind, "->", w] for w in ("bf16", "fp8", "int4")
    ]
