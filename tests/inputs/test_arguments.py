"""Arguments that cannot even be printed end in the package's own errors."""

import math
import re

import numpy
import pytest
import torch

import l4kernels
from l4kernels.demo import CHECKPOINT
from l4kernels.inputs.arguments import number, whole_number
from l4kernels.inputs.fields import ConfigError, Fields
from l4kernels.prompt.chat_template import ChatError
from l4kernels.prompt.tokenizer import Detokenizer
from l4kernels.prompt.tokenizer_file import TokenizerError
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
    files = [p for p in (ROOT / "l4kernels").rglob("*.py") if "ops" not in p.parts]
    raw = [
        f"{path.name}: {line.strip()}"
        for path in files
        for line in path.read_text().splitlines()
        if re.search(r"(?<!error)!r:\.\d+\}", line)
    ]
    assert len(files) > 80 and not raw


NUMBERS = {  # value: what it is as a whole number, and as a number, in [0, 9]; None: refused
    "int": (3, 3, 3.0),
    "bool": (True, None, None),
    "whole float": (4.0, None, 4.0),
    "float": (4.5, None, 4.5),
    "NaN": (math.nan, None, None),
    "infinity": (math.inf, None, None),
    "too large": (10, None, None),
    "below": (-1, None, None),
    "huge": (HUGE, None, None),
    "text": ("3", None, None),
    "numpy int": (numpy.int64(3), 3, 3.0),
    "numpy float": (numpy.float32(0.5), None, 0.5),
    "numpy bool": (numpy.bool_(True), None, None),
    "tensor": (torch.tensor(3), 3, 3.0),
    "tensor of two": (torch.ones(2), None, None),
    "list": ([3], None, None),
    "none": (None, None, None),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_call_and_a_file_agree_on_what_a_number_is(name):
    value, whole, real = NUMBERS[name]
    fields = Fields({"n": value}, "file")
    for check, of_field, wanted in (
        (whole_number, fields.integer, whole),
        (number, fields.number, real),
    ):
        if wanted is None:
            with pytest.raises(ValueError, match="expected n to be a") as caught:
                check("n", value, 0, 9)
            if name == "whole float":  # JSON has one kind of number
                assert of_field("n", 0, 9) == 4
                continue
            missing = value is None
            text = "file: n is missing" if missing else f"file: {caught.value}"
            with pytest.raises(ConfigError) as of_file:
                of_field("n", 0, 9)
            assert str(of_file.value) == text
        else:
            for found in (check("n", value, 0, 9), of_field("n", 0, 9)):
                assert found == wanted and type(found) is type(wanted)
