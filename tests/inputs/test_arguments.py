"""Arguments that cannot even be printed end in the package's own errors."""

import re

import pytest
import torch

import l4kernels
from l4kernels.demo import CHECKPOINT
from l4kernels.prompt.chat import ChatError
from l4kernels.prompt.tokenizer import Detokenizer, TokenizerError
from tools.nvcc import ROOT

HUGE = 10**5000  # Python prints no integer of more than 4,300 digits
NESTED: list = []
for _ in range(100_000):
    NESTED = [NESTED]
TURN = [{"role": "user", "content": "Hi"}]
IDS = torch.tensor([[1, 2, 100]])


@pytest.fixture(scope="module")
def prompter():
    return l4kernels.Prompter(CHECKPOINT)


@pytest.fixture(scope="module")
def model():
    return l4kernels.Llama4.from_pretrained(CHECKPOINT)


@pytest.mark.parametrize("value", [HUGE, [HUGE], NESTED], ids=["huge", "in a list", "nested"])
def test_what_cannot_be_printed_is_refused_like_anything_else(value, prompter, model):
    calls = {
        "ids": (TokenizerError, lambda: prompter.tokenizer.decode([value])),
        "stop": (ValueError, lambda: Detokenizer(prompter.tokenizer, value)),
        "chat_template": (ChatError, lambda: prompter.chat(TURN, chat_template=value)),
        "turn": (ChatError, lambda: prompter.chat(TURN, add_generation_prompt=value)),
        "final": (ChatError, lambda: prompter.chat(TURN, continue_final_message=value)),
        "logit_bias": (ValueError, lambda: l4kernels.Sampling(logit_bias=value)),
        "top_k": (ValueError, lambda: l4kernels.Sampling(top_k=[value])),
        "stop_ids": (ValueError, lambda: model.generate(IDS, 2, stop_ids=[value])),
        "streamer": (ValueError, lambda: model.generate(IDS, 2, streamer=value)),
        "sampling": (ValueError, lambda: model.stream(IDS, 2, sampling=value)),
    }
    for name, (kind, call) in calls.items():
        with pytest.raises(kind, match=r"expected|got") as caught:
            call()
        assert len(str(caught.value)) < 300, name


def test_messages_show_values_in_one_way():
    """`{value!r:.80}` builds all of it first, and raises where Python does not print it."""
    raw = [
        f"{path.name}: {line.strip()}"
        for path in (ROOT / "l4kernels" / "model").glob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"!r:\.80\}", line)
    ]
    assert not raw
