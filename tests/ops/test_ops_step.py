"""What a step does around the model: logits against transformers and OpenAI's formula, the state of
rows over whole generations, and what neither may touch."""

import math
import re
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers.generation import logits_process

from bench.checks.cases import cases
from bench.checks.inputs import Case
from bench.checks.kernel_checks import mutated
from l4kernels import ops
from l4kernels.ops.step import FAILED, IDLE, LENGTH, RUNNING, STOP, words
from tests.support.naive_step import bit
from tools.nvcc import ROOT

I32, VOCAB = torch.int32, 77


def mask(*rows: list[int], vocab: int = VOCAB) -> Tensor:
    """Bits of these tokens, a list a row; built a bit at a time."""
    found = torch.zeros(len(rows), words(vocab), dtype=torch.int64)
    for row, tokens in enumerate(rows):
        for token in set(tokens):
            found[row, token // 32] += 1 << token % 32
    return found.to(torch.uint32).view(I32)


ALL = list(range(VOCAB))


def processed(logits: Tensor, **changed: Any) -> Tensor:
    """With neutral values for all that is not given."""
    batch = len(logits)
    given: dict[str, Any] = {
        "tally": torch.zeros(batch, VOCAB, dtype=I32),
        "bias": torch.zeros(batch, VOCAB),
        "allowed": mask(*[ALL] * batch),
        "stop_bits": mask(*[[]] * batch),
        "generated": torch.zeros(batch, dtype=torch.int64),
        "min_tokens": torch.zeros(batch, dtype=torch.int64),
        "repetition_penalty": torch.ones(batch),
        "frequency_penalty": torch.zeros(batch),
        "presence_penalty": torch.zeros(batch),
        "active": torch.ones(batch, dtype=I32),
    }
    return ops.process_logits(logits, **given | changed)


def some_logits(batch: int = 4) -> Tensor:
    logits = torch.randn(batch, VOCAB) * 4
    logits[0, 5], logits[1, 6], logits[-1, :2] = math.inf, -math.inf, 0.0
    return logits


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(11)


def test_neutral_values_change_nothing():
    logits = some_logits()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given = logits.to(dtype)
        for active in (0, 1):
            got = processed(given, active=torch.full((4,), active, dtype=I32))
            assert torch.equal(got, given.float()) and got.dtype == torch.float32


@pytest.mark.parametrize("penalty", [1.3, 0.6])
def test_bias_repetition_and_minimum_are_those_of_transformers(penalty):
    """Bit by bit, in the order in which its generate applies them."""
    logits, history = some_logits(), torch.randint(0, VOCAB, (4, 30))
    biases = {3: 2.0, 17: -math.inf, 40: -1.5, 41: 100.0}
    chain = transformers.LogitsProcessorList(
        [
            logits_process.SequenceBiasLogitsProcessor({(t,): b for t, b in biases.items()}),
            logits_process.RepetitionPenaltyLogitsProcessor(penalty),
            logits_process.MinNewTokensLengthLogitsProcessor(20, 15, [7, 70]),
        ]
    )
    tally = torch.zeros(4, VOCAB, dtype=I32).scatter_(1, history[:, :20], 1)
    for row, generated in enumerate(history[:, 20:].tolist()):
        for token in generated:
            tally[row, token] += 2
    bias = torch.zeros(4, VOCAB)
    bias[:, list(biases)] = torch.tensor(list(biases.values()))
    got = processed(
        logits,
        tally=tally,
        bias=bias,
        repetition_penalty=torch.full((4,), penalty),
        stop_bits=mask(*[[7, 70]] * 4),
        generated=torch.full((4,), 10),
        min_tokens=torch.full((4,), 15),
    )
    assert torch.equal(got, chain(history, logits.clone()))


def test_frequency_and_presence_are_openais_formula():
    """mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, of what was
    generated; the prompt does not count."""
    logits, counts = some_logits(), torch.randint(0, 4, (4, VOCAB))
    frequency, presence = torch.tensor([0.5, -2.0, 0.0, 1.3]), torch.tensor([0.7, 2.0, -1.1, 0.0])
    got = processed(
        logits,
        tally=(2 * counts + torch.randint(0, 2, (4, VOCAB))).to(I32),
        frequency_penalty=frequency,
        presence_penalty=presence,
    )
    for row in range(4):
        for j in range(VOCAB):
            mu, c = logits[row, j], counts[row, j]
            assert got[row, j] == mu - c * frequency[row] - float(c > 0) * presence[row]
    assert torch.equal(processed(logits, tally=torch.ones(4, VOCAB, dtype=I32)), logits)


def test_what_is_not_allowed_or_stops_too_early_is_banned():
    logits = some_logits(3)
    logits[:, 30:34] = math.nan
    got = processed(
        logits,
        allowed=mask([0, 31, 32, 76], ALL, []),
        stop_bits=mask([31], [0, 31, 76], []),
        generated=torch.tensor([4, 5, 0]),
        min_tokens=torch.tensor([5, 5, 0]),
    )
    kept = [[0, 32, 76], ALL, []]
    for row, tokens in enumerate(kept):
        wanted = torch.full((VOCAB,), -math.inf)
        wanted[tokens] = logits[row, tokens]
        assert torch.equal(got[row].nan_to_num(99), wanted.nan_to_num(99))
    assert got[0, 32].isnan() and got[1, 31].isnan()


def test_an_inactive_row_is_a_copy_whatever_stands_beside_it():
    case = next(c for c in cases("process_logits") if len(c.args[0]) == 4).copy()
    logits, active = case.args[0], case.args[-1]
    active[::2] = 0
    for t in case.args[1:-1]:
        t[::2] = -1 if not t.is_floating_point() else math.nan
    got = ops.process_logits(*case.args)
    assert torch.equal(got[::2], logits[::2].float())
    assert not torch.equal(got[1::2], logits[1::2].float())


PAGE, CAPACITY = 4, 80


class Rows:
    """The state of B rows inside larger buffers, as an engine keeps it."""

    def __init__(self, batch: int, kinds: int = 2, vocab: int = VOCAB):
        slots, columns = batch + 3, CAPACITY // PAGE
        int64 = {"dtype": torch.int64}
        pages = torch.randperm(kinds * slots * columns).to(I32).view(kinds, slots, columns)
        self.whole = {
            "sampled": torch.zeros(slots, **int64),
            "ids": torch.full((slots,), 5, **int64),
            "positions": torch.randint(0, 9, (slots,)),
            "seqlens_k": torch.ones(slots, dtype=I32),
            "generated": torch.zeros(slots, **int64),
            "max_tokens": torch.full((slots,), 10**6),
            "stop_bits": torch.zeros(slots, words(vocab), dtype=I32),
            "slots": torch.full((kinds, slots), -1, **int64),
            "block_tables": pages,
            "results": torch.full((2, slots), 99, **int64),
            "tally": torch.zeros(slots, vocab, dtype=I32),
            "feature_rows": torch.full((slots,), 7, dtype=I32),
        }
        self.whole["seqlens_k"] += self.whole["positions"].to(I32)
        across = ("slots", "block_tables", "results")
        self.t = {n: t[:, :batch] if n in across else t[:batch] for n, t in self.whole.items()}

    def step(self, sampled: list[int]) -> list[list[int]]:
        self.t["sampled"].copy_(torch.tensor(sampled))
        result = ops.advance_step(**self.t, page_size=PAGE)
        assert result is None
        return self.t["results"].tolist()


def test_rows_of_larger_buffers_over_whole_generations():
    """Arrivals and departures at random; a model of each row in Python."""
    rows = Rows(6)
    t, draw = rows.t, torch.Generator().manual_seed(2)
    untouched = {n: w.clone() for n, w in rows.whole.items()}
    t["stop_bits"].copy_(mask(*[[3, 64]] * 6))
    t["max_tokens"].copy_(torch.tensor([1, 5, 20, 30, 7, 10**6]))
    history = [[] for _ in range(6)]
    codes = set()
    for _ in range(60):
        tokens = torch.randint(-1, VOCAB, (6,), generator=draw).tolist()
        before = {n: v.clone() for n, v in t.items()}
        got_tokens, got_codes = rows.step(tokens)
        codes |= set(got_codes)
        for b, (token, code) in enumerate(zip(got_tokens, got_codes, strict=True)):
            position, length = int(before["positions"][b]), int(before["seqlens_k"][b])
            if length == 0:
                assert (token, code) == (-1, IDLE)
                for name in set(t) - {"sampled", "results"}:
                    across = name in ("slots", "block_tables")
                    now, then = (v[name][:, b] if across else v[name][b] for v in (t, before))
                    assert torch.equal(now, then), name
                t["positions"][b], t["seqlens_k"][b], history[b] = 2, 3, []  # the next arrives
                t["generated"][b], t["tally"][b] = 0, 0
                continue
            assert token == tokens[b]
            if token >= 0:
                history[b].append(token)
            wanted = (
                FAILED if token < 0
                else STOP if token in (3, 64)
                else LENGTH if len(history[b]) == int(t["max_tokens"][b])
                else RUNNING
            )  # fmt: skip
            assert code == wanted and int(t["generated"][b]) == len(history[b])
            assert t["tally"][b].tolist() == [2 * history[b].count(v) for v in range(VOCAB)]
            assert int(t["feature_rows"][b]) == -1
            if code != RUNNING:
                assert t["ids"][b] == before["ids"][b]
                assert (t["positions"][b], t["seqlens_k"][b]) == (0, 0)
                assert t["slots"][:, b].tolist() == [-1, -1]
                continue
            assert (t["ids"][b], t["positions"][b]) == (token, position + 1)
            assert t["seqlens_k"][b] == length + 1
            for kind in range(2):
                page = t["block_tables"][kind, b, (position + 1) // PAGE]
                assert t["slots"][kind, b] == page * PAGE + (position + 1) % PAGE
    assert codes == {RUNNING, STOP, LENGTH, FAILED, IDLE}
    for name, whole in rows.whole.items():
        across = name in ("slots", "block_tables", "results")
        now, then = (w[:, 6:] if across else w[6:] for w in (whole, untouched[name]))
        assert torch.equal(now, then), f"{name}: a row beyond the bucket"


@pytest.mark.parametrize("position", [CAPACITY - 1, 10**9, 2**62, -PAGE - 1, -2])
def test_a_position_without_a_page_writes_nowhere(position):
    rows = Rows(1)
    rows.t["positions"].fill_(position)
    assert rows.step([5])[1] == [RUNNING]
    assert rows.t["slots"].tolist() == [[-1], [-1]]


def test_a_page_below_0_writes_nowhere_and_the_largest_is_no_int32():
    rows = Rows(1)
    rows.t["positions"].fill_(PAGE - 1)
    rows.t["block_tables"][:, 0, 1] = torch.tensor([-1, 2**31 - 1], dtype=I32)
    rows.step([5])
    assert rows.t["slots"].flatten().tolist() == [-1, (2**31 - 1) * PAGE]


@pytest.mark.parametrize("token", [-1, -(2**63), VOCAB, VOCAB + 1, 96, 2**40, 2**63 - 1])
def test_a_token_outside_of_the_vocabulary_fails_the_row_and_counts_nowhere(token):
    rows = Rows(2)
    assert rows.step([token, 4]) == [[token, 4], [FAILED, RUNNING]]
    assert rows.t["generated"].tolist() == [0, 1] and rows.t["tally"].sum() == 2
    rows = Rows(2)
    del rows.t["tally"]  # the words of the stop bits are all that says how many tokens there are
    ends = FAILED if not 0 <= token < 96 else RUNNING
    assert rows.step([token, 4])[1] == [ends, RUNNING]


def test_a_limit_that_has_passed_ends_the_row():
    rows = Rows(1)
    rows.t["max_tokens"].fill_(0)
    assert rows.step([5])[1] == [LENGTH]


def test_every_bit_of_a_word_stops():
    for token in (0, 30, 31, 32, 63, 76):
        rows = Rows(2)
        rows.t["stop_bits"].copy_(mask([token], [v for v in ALL if v != token]))
        assert bit(rows.t["stop_bits"], 0, token) == 1
        assert rows.step([token, token])[1] == [STOP, RUNNING]


def test_the_kernel_has_the_same_codes():
    text = (ROOT / "csrc" / "kernels" / "advance_step" / "rules.h").read_text()
    (names,) = re.findall(r"enum StepCode : int \{ (.*) \};", text)
    codes = [name.removeprefix("kStep").upper() for name in names.split(", ")]
    assert [getattr(ops.step, code) for code in codes] == [0, 1, 2, 3, 4]


def test_logits_are_processed_without_a_value_on_the_host():
    """The body runs on tensors without data: on a GPU nothing waits for it."""
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for case in cases("process_logits"):
            args, kwargs = tree_map_only(Tensor, mode.from_tensor, (case.args, case.kwargs))
            ops.OPS["process_logits"].body(*args, **kwargs)


WRONG = {
    "tally": (lambda t: t[:, :40], "expected stop_bits to hold a bit for each of the 40 tokens"),
    "stop_bits": (lambda t: t[:, :0], "expected at least one word of stop_bits"),
    "block_tables": (lambda t: t[:, :, :0], "expected at least one column of block_tables"),
    "ids": (lambda t: t.repeat(2)[::2], "expected ids to be contiguous"),
    "seqlens_k": (lambda t: t[:1].expand(3), "expected seqlens_k to be contiguous"),
    "slots": (lambda t: t[:1].expand(2, 3), "rows of slots, which are written, to share no memory"),
    "results": (lambda t: t[:1].expand(2, 3), "rows of results, which are written, to share no"),
    "page_size": (lambda t: 0, "expected page_size in 1 to 2147483647, got 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_are_refused_by_name(name):
    change, message = WRONG[name]
    rows = Rows(3)
    given = {**rows.t, "page_size": PAGE}
    given[name] = change(given[name])
    with pytest.raises(ValueError, match=message):
        ops.advance_step(**given)


def test_work_counts_the_rows_that_are_there():
    case = Case("", (), {**Rows(3).t, "page_size": PAGE})
    lengths = case.kwargs["seqlens_k"]
    full = ops.advance_step.work(**case.kwargs).bytes
    lengths[:2] = 0
    part = ops.advance_step.work(**case.kwargs).bytes
    assert full - part == 2 * (2 * 8 + 8 + 16 + 16 + 4 + 4 + 8 + 4 + 2 * 12)
    assert [n for n, _ in mutated("advance_step", case)] == [
        "ids", "positions", "seqlens_k", "generated", "slots", "results", "tally", "feature_rows"
    ]  # fmt: skip
    wide = [torch.zeros(2, VOCAB, dtype=d) for d in (torch.float32, I32, torch.float32)]
    masks, counts = [mask([], [])] * 2, [torch.zeros(2, dtype=torch.int64)] * 2
    for active in (0, 1):
        rows = torch.tensor([0, active], dtype=I32)
        work = ops.process_logits.work(*wide, *masks, *counts, *[torch.ones(2)] * 3, rows)
        assert work.bytes == 2 * VOCAB * 8 + 8 + active * (8 * VOCAB + 8 * words(VOCAB) + 28)
