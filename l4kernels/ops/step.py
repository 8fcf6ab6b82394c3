"""What a decoding step does around the model: logits before sampling, state after it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS
from l4kernels.ops.contract import Contract
from l4kernels.ops.registry import Work, op, tensor_bytes

RUNNING, STOP, LENGTH, FAILED, IDLE = range(5)
"""What `advance_step` says of a row: it goes on; a stop token ended it; its limit did; it has no
next token; there was no request in it. `csrc/kernels/advance_step/rules.h` has the same."""

WORD = 32
"""Tokens in a word of a bit mask: token v is bit v % 32 of word v // 32."""

I32, I64 = torch.int32, torch.int64


def words(vocab: int) -> int:
    """int32 words of a bit mask over a vocabulary.

    >>> words(202)
    7
    """
    return -(-vocab // WORD)


def pack_bits(ids: Iterable[int], vocab: int) -> Tensor:
    """The int32 bit mask `[words(vocab)]` of some tokens, on the CPU.

    >>> pack_bits([0, 33], 40).tolist()
    [1, 2]
    """
    flags = torch.zeros(words(vocab), WORD, dtype=I64, device="cpu")
    flags.view(-1)[list(ids)] = 1
    places = torch.arange(WORD, dtype=I64, device="cpu")
    return (flags << places).sum(1).to(I32)


def unpack_bits(mask: Tensor, vocab: int) -> Tensor:
    """Bool `[B, vocab]` of an int32 bit mask `[B, words(vocab)]`.

    >>> unpack_bits(torch.tensor([[5]], dtype=torch.int32), 4)
    tensor([[ True, False,  True, False]])
    """
    places = torch.arange(WORD, dtype=I32, device=mask.device)
    return (mask.unsqueeze(-1) >> places & 1).flatten(1)[:, :vocab].bool()


def _check_process_logits(args: Bound) -> None:
    contract = Contract(args)
    contract.tensor("logits", FLOATS, ["B", "V"], "rows")
    contract.tensor("tally", I32, ["B", "V"], "rows")
    contract.tensor("bias", torch.float32, ["B", "V"], "rows")
    for name in ("allowed", "stop_bits"):
        contract.tensor(name, I32, ["B", words(contract.sizes["V"])], "rows")
    for name in ("generated", "min_tokens"):
        contract.tensor(name, I64, ["B"])
    for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
        contract.tensor(name, torch.float32, ["B"])
    contract.tensor("active", I32, ["B"])


def _work_process_logits(args: Bound) -> Work:
    batch, vocab = args.logits.shape
    active = int((args.active != 0).sum())
    # Tally and bias, two bit masks, two counts and three penalties.
    row = 8 * vocab + 2 * 4 * words(vocab) + 2 * 8 + 3 * 4
    copied = tensor_bytes(args.logits, args.active) + 4 * batch * vocab
    return Work(flops=8 * vocab * active, bytes=copied + active * row)


def _fake_process_logits(args: Bound) -> Tensor:
    return args.logits.new_empty(args.logits.shape, dtype=torch.float32)


@op(check=_check_process_logits, work=_work_process_logits, fake=_fake_process_logits)
def process_logits(
    logits: Tensor,
    tally: Tensor,
    bias: Tensor,
    allowed: Tensor,
    stop_bits: Tensor,
    generated: Tensor,
    min_tokens: Tensor,
    repetition_penalty: Tensor,
    frequency_penalty: Tensor,
    presence_penalty: Tensor,
    active: Tensor,
) -> Tensor:
    """Biases, penalties and bans, each row with settings of its own; then comes `sample`.

    In this order, in float32 with a rounding after each operation: add `bias`; multiply the
    logits of the tokens in `tally` by `repetition_penalty` where they are negative, and divide
    them by it elsewhere (as transformers does); subtract `frequency_penalty` times the number of
    times that the token was generated, then `presence_penalty` if it was (as OpenAI's API and vLLM
    do); -inf for the tokens of `stop_bits` while fewer than `min_tokens` are generated; -inf for
    tokens that are not in `allowed`. A NaN stays one, except where it is banned.

    Neutral values: a bias of 0, penalties of 1, 0 and 0, a minimum of 0, all bits of `allowed`.
    A bit mask has token v in bit v % 32 of word v // 32.

    Args:
        logits: `[B, V]` float32, bfloat16 or float16.
        tally: int32 `[B, V]`: 2 times how often a token was generated, + 1 if the prompt has it.
        bias: float32 `[B, V]`.
        allowed, stop_bits: int32 `[B, ceil(V / 32)]`, bit masks.
        generated, min_tokens: int64 `[B]`, numbers of tokens.
        repetition_penalty, frequency_penalty, presence_penalty: float32 `[B]`.
        active: int32 `[B]`; 0: the row is copied as it is, and nothing else of it is read.

    Returns:
        float32 `[B, V]`.

    >>> logits, zero = torch.tensor([[1.0, 2.0, -4.0, 8.0]]), torch.zeros(1, dtype=torch.int64)
    >>> tally = torch.tensor([[0, 3, 1, 0]], dtype=torch.int32)  # token 1 was generated once
    >>> allowed, none = torch.tensor([[0b0111], [0]], dtype=torch.int32).split(1)
    >>> half, one = torch.full((1,), 0.5), torch.ones(1)
    >>> plain = torch.zeros_like(logits)
    >>> process_logits(
    ...     logits, tally, plain, allowed, none, zero, zero, 4 * half, half, one, one.int()
    ... )
    tensor([[ 1.0000, -0.5000, -8.0000,    -inf]])
    """
    x = logits.float()
    counts = (tally >> 1).float()
    changed = x + bias
    repetition, frequency, presence = (
        t.unsqueeze(1) for t in (repetition_penalty, frequency_penalty, presence_penalty)
    )
    repeated = torch.where(changed < 0, changed * repetition, changed / repetition)
    changed = torch.where(tally != 0, repeated, changed)
    changed = changed - frequency * counts - presence * (counts > 0)
    vocab = logits.shape[1]
    early = (generated < min_tokens).unsqueeze(1)
    banned = ~unpack_bits(allowed, vocab) | (unpack_bits(stop_bits, vocab) & early)
    changed = changed.masked_fill(banned, float("-inf"))
    return torch.where(active.unsqueeze(1) != 0, changed, x)


def _check_advance_step(args: Bound) -> None:
    contract = Contract(args)
    contract.tensor("sampled", I64, ["B"])
    for name in ("ids", "positions", "generated", "max_tokens"):
        contract.tensor(name, I64, ["B"], "contiguous")
    for name in ("seqlens_k", "feature_rows"):
        contract.tensor(name, I32, ["B"], "contiguous")
    contract.tensor("stop_bits", I32, ["B", "words"], "rows")
    contract.tensor("slots", I64, ["K", "B"], "rows")
    contract.tensor("block_tables", I32, ["K", "B", "P"], "rows")
    contract.tensor("results", I64, [2, "B"], "rows")
    contract.tensor("tally", I32, ["B", "V"], "rows")
    for name, what in (("words", "word of stop_bits"), ("P", "column of block_tables")):
        contract.require(contract.sizes[name] >= 1, f"expected at least one {what}, got none")
    for name in ("slots", "results", "tally"):
        _require_rows_apart(contract, name)
    if args.tally is not None:
        contract.require(
            words(contract.sizes["V"]) == contract.sizes["words"],
            f"expected stop_bits to hold a bit for each of the {contract.sizes['V']} tokens of "
            f"tally ({words(contract.sizes['V'])} words), got {contract.sizes['words']}",
        )
    contract.require(
        1 <= args.page_size < 2**31,
        f"expected page_size in 1 to {2**31 - 1}, got {args.page_size}",
    )


def _require_rows_apart(contract: Contract, name: str) -> None:
    t = getattr(contract.args, name)
    contract.require(
        t is None or t.shape[0] <= 1 or t.stride(0) >= t.shape[1],
        f"expected the rows of {name}, which are written, to share no memory",
    )


def _work_advance_step(args: Bound) -> Work:
    rows, running = len(args.ids), int((args.seqlens_k > 0).sum())
    kinds = args.slots.shape[0]
    # sampled, max_tokens; ids; positions, generated (read and written); a stop word; lengths.
    state = 2 * 8 + 8 + 2 * 16 + 4 + 4
    tally = 8 * (args.tally is not None) + 4 * (args.feature_rows is not None)
    return Work(flops=0, bytes=rows * (4 + 16) + running * (state + tally + kinds * (4 + 8)))


@op(
    check=_check_advance_step,
    work=_work_advance_step,
    fake=lambda args: None,
    mutates=(
        "ids", "positions", "seqlens_k", "generated", "slots", "results", "tally", "feature_rows",
    ),
)  # fmt: skip
def advance_step(
    sampled: Tensor,
    ids: Tensor,
    positions: Tensor,
    seqlens_k: Tensor,
    generated: Tensor,
    max_tokens: Tensor,
    stop_bits: Tensor,
    slots: Tensor,
    block_tables: Tensor,
    results: Tensor,
    *,
    page_size: int,
    tally: Tensor | None = None,
    feature_rows: Tensor | None = None,
) -> None:
    """Makes the inputs of the next decoding step from the tokens of this one, all on the device.

    A row without a request has a length of 0. There `results` becomes (-1, `IDLE`), and nothing
    else is written. In every other row `results` becomes (the token, one of these):

    * `FAILED`: the token is -1 (of `sample`: there is no next one), or outside of the vocabulary.
    * `STOP`: its bit is set in `stop_bits`. This and the following count it in `generated`.
    * `LENGTH`: `generated` has reached `max_tokens`.
    * `RUNNING`: the token is the next of `ids`, position and length grow by 1, and `slots` says
      where keys and values of the new position go: page * page_size + offset, the page from
      `block_tables`; -1 where the table has no such column, or a page below 0.

    But for `RUNNING` the row has ended: its length and position become 0, its slots -1.

    Args:
        sampled: int64 `[B]`.
        ids, positions: int64 `[B]`, written in place, as all but `sampled`, the limits, the stop
            bits and the tables are.
        seqlens_k: int32 `[B]`, keys in the cache with that of `positions`; 0: no request.
        generated: int64 `[B]`, tokens so far.
        max_tokens: int64 `[B]`.
        stop_bits: int32 `[B, ceil(V / 32)]`: bit v % 32 of word v // 32: token v ends the row.
        slots: int64 `[K, B]`, one row for each kind of layers.
        block_tables: int32 `[K, B, P]`, their pages.
        results: int64 `[2, B]`, for the host: tokens and codes.
        page_size: positions in a page.
        tally: int32 `[B, V]` of `process_logits`; 2 is added at each counted token.
        feature_rows: int32 `[B]`, `image_rows` of `embed`; -1 from the first new token on.

    >>> one, state = torch.ones(1, dtype=torch.int64), torch.full((5, 1), 7)
    >>> length, stop, table = torch.tensor([[8], [1 << 3], [4]], dtype=torch.int32)
    >>> results = torch.zeros(2, 1, dtype=torch.int64)
    >>> fixed = stop[:, None], state[3:4], table.view(1, 1, 1), results
    >>> advance_step(one, state[0], state[1], length, state[2], one * 9, *fixed, page_size=16)
    >>> state.flatten().tolist(), length.item()  # id, position, generated, slot
    ([1, 8, 8, 72, 7], 9)
    >>> advance_step(3 * one, state[0], state[1], length, state[2], one * 9, *fixed, page_size=16)
    >>> results.flatten().tolist() == [3, STOP], length.item()
    (True, 0)
    """
    vocab = WORD * stop_bits.shape[1] if tally is None else tally.shape[1]
    if feature_rows is not None:
        feature_rows.masked_fill_(seqlens_k > 0, -1)
    fields = ids, positions, seqlens_k, generated
    # In Python's numbers: a row is a few branches, and for a tensor each would be several calls.
    before = zip(sampled.tolist(), max_tokens.tolist(), *(t.tolist() for t in fields), strict=True)
    after, places = [], slots.tolist()
    for row, (token, most, id, position, length, count) in enumerate(before):
        code = IDLE if length <= 0 else RUNNING if 0 <= token < vocab else FAILED
        if code == RUNNING:
            count += 1
            if tally is not None:
                tally[row, token] += 2
            stops = stop_bits[row, token // WORD].item() >> token % WORD & 1
            code = STOP if stops else LENGTH if count >= most else RUNNING
        if code == RUNNING:
            id, position, length = token, position + 1, length + 1
        elif code != IDLE:
            position, length = 0, 0
        if code != IDLE:
            for own, table in zip(places, block_tables, strict=True):
                own[row] = _slot(table[row], position, page_size) if code == RUNNING else -1
        after.append((id, position, length, count, -1 if code == IDLE else token, code))
    if not after:
        return
    for t, values in zip((*fields, *results), zip(*after, strict=True), strict=True):
        t.copy_(torch.tensor(values, dtype=t.dtype, device=t.device))
    slots.copy_(torch.tensor(places, dtype=I64, device=slots.device))


def _slot(table: Tensor, position: int, page_size: int) -> int:
    """-1 where there is none."""
    column = position // page_size
    page = table[column].item() if 0 <= column < len(table) else -1
    return -1 if page < 0 else int(page) * page_size + position % page_size
