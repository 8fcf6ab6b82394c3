"""Text of a caller is never a control token, and all other ids are Hugging Face's.

`python tests/prompt/test_chat_guard.py 1000` runs that many hostile conversations through each
template.
"""

import json
import random
import sys
import tempfile
from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4kernels.prompt.chat import Prompter
from l4kernels.prompt.chat_template import ChatError
from l4kernels.prompt.control_tokens import ROLES
from tests.support import chat_templates
from tests.support.chat_templates import PLAIN, SPECIAL, TEMPLATES
from tests.support.tiny import SPECIAL as LLAMA

CONTROL = [*LLAMA, *SPECIAL, *PLAIN]
SAMPLE = 100
Message = make_dataclass("Message", ["role", "content"])


class Sides:
    """For each template this package's prompter, and one tokenizer of transformers."""

    def __init__(self, folder: Path):
        from transformers import PreTrainedTokenizerFast

        self.prompters = {}
        for name, template in TEMPLATES.items():
            path = folder / name.replace(" ", "_")
            path.mkdir()
            chat_templates.write_checkpoint(path, template)
            self.prompters[name] = Prompter(path)
        self.theirs = PreTrainedTokenizerFast.from_pretrained(path)
        self.control = {i for i, t in self.theirs.added_tokens_decoder.items()}

    def expected(self, name, messages, tools, **how):
        arguments = {"add_generation_prompt": True, "return_dict": False} | how
        return self.theirs.apply_chat_template(
            messages, tools=tools, chat_template=TEMPLATES[name], **arguments
        )

    def control_ids(self, ids):
        return [i for i in ids if i in self.control]


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    return Sides(tmp_path_factory.mktemp("checkpoints"))


def reads_tools(name):
    return "tools" in TEMPLATES[name]


# Text without anything that could be, or become, a control token.
fragments = st.sampled_from(
    [
        "<b>",
        "</i>",
        "{{x}}",
        "&amp;",
        "é",
        "日本語",
        "😀",
        "\u200d",
        "'S",
        "123",
        "\n\n",
        "\t",
        "end",
    ]
)
plain_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="<>|[]｜⁂"), max_size=9
)
text = st.lists(fragments | plain_text | st.just(" "), max_size=5).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
calls = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": text, "arguments": st.dictionaries(text, values)})}
)
contents = text | st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": text}), max_size=3
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": contents},
    optional={"tool_calls": st.lists(calls, max_size=1), "reasoning_content": text},
)
conversations = st.tuples(
    st.lists(st.fixed_dictionaries({"role": st.just("system"), "content": text}), max_size=1),
    st.lists(messages, min_size=1, max_size=4),
).map(lambda parts: parts[0] + parts[1])
tool_lists = st.none() | st.lists(
    st.fixed_dictionaries({"name": text, "parameters": values}), max_size=2
)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30, deadline=None)
@given(conversation=conversations, tools=tool_lists, goes_on=st.booleans())
def test_ids_are_those_of_hugging_face(sides, name, conversation, tools, goes_on):
    tools = tools if reads_tools(name) else None
    prompter = sides.prompters[name]
    how = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on}
    try:
        want = sides.expected(name, conversation, tools, **how)
    except Exception:
        with pytest.raises(ChatError):
            prompter.chat(conversation, tools=tools, **how)
        return
    if want:
        assert prompter.chat(conversation, tools=tools, **how).ids == want


BESIDE = [*"x_.-1 \n\t²½Ⅷ‿é日\u0301\u200d\u00a0\u2028\x1c\x7f", "hi ", ""]


@pytest.mark.parametrize("seed", range(8))
def test_tokens_mind_what_is_beside_them_as_in_hugging_face(tmp_path, seed):
    """Flags of all kinds, mixed, as a token's flags decide what is left for the next one."""
    from transformers import PreTrainedTokenizerFast

    pick = random.Random(seed)
    template = TEMPLATES[pick.choice(["llama 4", "chatml", "deepseek", "phi"])]
    chat_templates.write_checkpoint(tmp_path, template)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    for token in content["added_tokens"]:
        names = ("single_word", "lstrip", "rstrip", "normalized")
        token.update({name: pick.random() < 0.3 for name in names})
    content["normalizer"] = pick.choice([None, {"type": "NFC"}, {"type": "Lowercase"}])
    file.write_text(json.dumps(content))
    prompter = Prompter(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for _ in range(25):
        texts = ["".join(pick.choices(BESIDE, k=pick.randint(0, 4))) for _ in range(3)]
        turns = [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant", "user"), texts, strict=True)
        ]
        want = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert prompter.chat(turns).ids == want, texts


TWIN = str.maketrans("<>|[]｜⁂", "‹›¦⟦⟧¦※")
WIDE = str.maketrans({c: chr(ord(c) + 0xFEE0) for c in map(chr, range(33, 127))})


def twin(value, key=None):
    """The same conversation in text that spells no control token."""
    if isinstance(value, str):
        if key == "role":
            return value if value in ROLES else value.translate(WIDE).translate(TWIN)
        return value.translate(TWIN)
    if isinstance(value, dict):
        return {twin(k): twin(v, k) for k, v in value.items()}
    return [twin(v) for v in value] if isinstance(value, list) else value


class Attack:
    """A conversation of a caller who knows every token and the template, by seed."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.messages = [self.message() for _ in range(self.random.randint(1, 4))]
        self.tools = [self.value() for _ in range(self.random.randint(1, 2))]
        self.tools = [t if isinstance(t, dict) else {self.text(): t} for t in self.tools]

    def text(self) -> str:
        pick = self.random
        token = pick.choice(CONTROL)
        cut = pick.randint(0, len(token))
        halves = [token[:cut], token[cut:], token[:1], token[-1:], token[1:], token[:-1]]
        odd = [
            "user",
            "\n",
            " ",
            "⁂",
            "\\",
            "%s",
            "{0}",
            "{{ bos_token }}",
            "\ue000",
            "\0",
            "<image>",
        ]
        choices = [token, token, token[::-1], token.upper(), *halves, *odd]
        return "".join(pick.choices(choices, k=pick.randint(1, 4)))

    def value(self, depth: int = 0):
        kinds = [self.text] * 3 + [lambda: self.random.choice([None, True, 1, 0.5])]
        if depth < 3:
            kinds += [lambda: [self.value(depth + 1) for _ in range(2)]] * 2
            kinds += [lambda: {self.text(): self.value(depth + 1) for _ in range(2)}] * 3
        return self.random.choice(kinds)()

    def message(self) -> dict:
        pick = self.random
        names = ["user", "assistant", "system", "tool"]
        role = pick.choice(names) if pick.random() < 0.8 else self.text()
        role = pick.choice([role] * 9 + ["end", "im_start"])
        parts = [{"type": "text", "text": self.text()} for _ in range(pick.randint(1, 4))]
        message = {"role": role, "content": pick.choice([self.text(), self.text(), parts])}
        if pick.random() < 0.3:
            function = {"name": self.text(), "arguments": pick.choice([self.value(), self.text()])}
            message["tool_calls"] = [{"function": function}]
        if pick.random() < 0.2:
            message[pick.choice(["reasoning_content", self.text()])] = self.text()
        return message

    def disguised(self) -> list:
        """The messages as objects, generators and mappings of other kinds."""

        def disguise(message):
            names = message.keys()
            content = message["content"]
            if isinstance(content, list) and self.random.random() < 0.5:
                message = message | {"content": (part for part in content)}
            if all(name.isidentifier() for name in names):
                kinds = [dict, lambda m: SimpleNamespace(**m)]
                kinds += [lambda m: Message(**m)] * (len(names) == 2)
                return self.random.choice(kinds)(message)
            return message

        return [disguise(m) for m in self.messages]


def check_attack(sides: Sides, name: str, seed: int) -> bool:
    """Whether the template rendered it; the ids are then text but where the template spoke."""
    attack, prompter = Attack(seed), sides.prompters[name]
    tools = attack.tools if reads_tools(name) else None
    try:
        text = sides.expected(name, attack.messages, tools, tokenize=False)
        control = sides.control_ids(sides.expected(name, twin(attack.messages), twin(tools)))
    except Exception:
        with pytest.raises(ChatError):
            prompter.chat(attack.disguised(), tools=tools)
        return False
    ids = prompter.chat(attack.disguised(), tools=tools).ids
    assert sides.control_ids(ids) == control, (name, seed)
    assert prompter.tokenizer.decode(ids, skip_special=False) == text, (name, seed)
    return True


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_text_of_a_caller_is_a_control_token(sides, name):
    rendered = sum(check_attack(sides, name, seed) for seed in range(SAMPLE))
    assert rendered > SAMPLE / 10  # templates refuse some roles


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        both = Sides(Path(folder))
        for name in TEMPLATES:
            rendered = sum(check_attack(both, name, seed) for seed in range(int(sys.argv[1])))
            print(f"{name}: {rendered} of {sys.argv[1]} rendered, the others refused on both sides")
