"""Beside transformers: time and memory of a forward of 512 tokens, and decoding."""

from l4kernels import Llama4Config, demo
from tests.support.checkpoints import tensors_of, write
from tests.support.compare_speed import TEXT, compare, measure


def test_forward_is_no_slower_and_takes_half_the_memory(tmp_path):
    write(tmp_path, tensors_of(Llama4Config.from_dict(TEXT)), **TEXT)
    result = compare(str(tmp_path))
    time, memory = result["seconds"], result["bytes"]
    assert memory["ours"] <= 0.5 * memory["theirs"], result
    assert time["ours"] <= time["theirs"], result


def test_decoding_a_token_costs_less():
    """0.71 to 0.85 times their CPU time when this was written, with the prompt and the capture of
    the step in 33 tokens; a token more costs 0.62 to 0.72 times theirs."""
    cost = measure(str(demo.CHECKPOINT), "decode", "6")
    assert cost["ours"] <= 0.95 * cost["theirs"], cost
