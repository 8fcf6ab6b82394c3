"""Time and memory of a 512-token forward beside transformers."""

from l4kernels import Llama4Config
from tests.support.checkpoints import tensors_of, write
from tests.support.compare_speed import TEXT, compare


def test_forward_is_no_slower_and_takes_half_the_memory(tmp_path):
    write(tmp_path, tensors_of(Llama4Config.from_dict(TEXT)), **TEXT)
    result = compare(str(tmp_path))
    time, memory = result["seconds"], result["bytes"]
    assert memory["ours"] <= 0.5 * memory["theirs"], result
    assert time["ours"] <= time["theirs"], result
