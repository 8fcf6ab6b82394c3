"""Choosing the next token."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS
from l4kernels.ops.contract import Contract
from l4kernels.ops.philox import gumbel_noise
from l4kernels.ops.registry import Work, op, tensor_bytes
from l4kernels.ops.views import scalar


class Sample(NamedTuple):
    """Chosen tokens, and log-probabilities of the unmodified logits."""

    ids: Tensor
    logprobs: Tensor
    top_ids: Tensor
    top_logprobs: Tensor


def _check_sample(args: Bound) -> None:
    contract = Contract(args)
    contract.tensor("logits", FLOATS, ["B", "V"], "rows")
    vocab = contract.sizes["V"]
    contract.require(
        vocab >= 1, f"expected at least one token to choose from, got {list(args.logits.shape)}"
    )
    contract.tensor("temperature", torch.float32, ["B"])
    contract.tensor("top_k", torch.int32, ["B"])
    contract.tensor("top_p", torch.float32, ["B"])
    contract.tensor("min_p", torch.float32, ["B"])
    contract.tensor("seeds", torch.int64, ["B"])
    contract.tensor("counters", torch.int64, ["B"])
    contract.require(
        0 <= args.top_logprobs <= vocab,
        f"expected top_logprobs in 0 to {vocab} (the vocabulary), got {args.top_logprobs}",
    )


def _work_sample(args: Bound) -> Work:
    batch = args.logits.shape[0]
    parameters = tensor_bytes(
        args.temperature, args.top_k, args.top_p, args.min_p, args.seeds, args.counters
    )
    return Work(
        flops=4 * args.logits.numel(),
        bytes=tensor_bytes(args.logits) + parameters + 12 * batch * (1 + args.top_logprobs),
    )


def _fake_sample(args: Bound) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row, listed = (args.logits.shape[0],), (args.logits.shape[0], args.top_logprobs)
    empty = args.logits.new_empty
    return (
        empty(row, dtype=torch.int64),
        empty(row, dtype=torch.float32),
        empty(listed, dtype=torch.int64),
        empty(listed, dtype=torch.float32),
    )


@op(check=_check_sample, work=_work_sample, fake=_fake_sample, returns=Sample)
def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    counters: Tensor,
    top_logprobs: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws one token per row; the same seed and counter give the same token in any batch.

    Temperature 0 takes the largest logit, the lowest id among equals. Otherwise, in float32:
    divide by the temperature; keep the k likeliest; of those, keep a token if the probability of
    all likelier ones is at most `top_p` (so the token that crosses it stays); keep tokens with at
    least `min_p` times the largest probability; add Gumbel noise (`gumbel_noise`) and take the
    largest, which draws from the softmax of what is left. Equally likely tokens are ordered by id.
    A token of -inf is never drawn. A row has no next token if one of its logits, its temperature,
    `top_p` or `min_p` is NaN, or if no logit is above -inf: its ids are then -1, its
    log-probabilities NaN.

    Args:
        logits: `[B, V]` float32, bfloat16 or float16.
        temperature: float32 `[B]`; 0 (or less): greedy; infinity: as the largest float.
        top_k: int32 `[B]`; 0: off.
        top_p: float32 `[B]`; 1: off.
        min_p: float32 `[B]`; 0: off.
        seeds: int64 `[B]`, of the request.
        counters: int64 `[B]`, different for each token of a request, e.g. its position.
        top_logprobs: how many of the likeliest tokens to report.

    Returns:
        `Sample` of `ids` int64 `[B]`, `logprobs` float32 `[B]` (log-softmax of the raw logits at
        `ids`), and the likeliest tokens `top_ids` int64 and `top_logprobs` float32 `[B, n]`.

    >>> one, off = torch.ones(1), torch.zeros(1)
    >>> number = torch.zeros(1, dtype=torch.int64)
    >>> sample(torch.tensor([[0.0, 9.0, 9.0]]), off, number.int(), one, off, number, number).ids
    tensor([1])
    """
    value = logits.float()
    # Relative to the largest, and exactly 0 there: infinite logits then need no other care.
    top = value.amax(-1, keepdim=True)
    if top_logprobs == 0 and _all_greedy(top, temperature, top_p, min_p):
        total = (value - top).exp().sum(-1).log()
        none = value.new_empty(len(value), 0)
        return value.argmax(-1), scalar(0.0, total) - total, none.long(), none
    value = torch.where(value == top, 0.0, value - top)
    ids = value.argmax(-1)
    settings = temperature.isnan() | top_p.isnan() | min_p.isnan()
    nothing = ~(top.squeeze(1) > float("-inf")) | settings
    drawn = ((temperature > 0) & ~nothing).nonzero().squeeze(1)
    if drawn.numel():
        parameters = (t.index_select(0, drawn) for t in (temperature, top_k, top_p, min_p))
        kept = _filtered(value.index_select(0, drawn), *parameters)
        noise = gumbel_noise(seeds[drawn], counters[drawn], logits.shape[1])
        ids = ids.index_copy(0, drawn, (kept + noise).argmax(-1))
    total = value.exp().sum(-1, keepdim=True).log()
    chosen = (value.gather(-1, ids.unsqueeze(1)) - total).squeeze(1)
    chosen.masked_fill_(nothing, float("nan"))
    ids.masked_fill_(nothing, -1)
    if top_logprobs == 0:
        return ids, chosen, ids.new_empty(len(ids), 0), chosen.new_empty(len(ids), 0)
    ordered, order = (value - total).sort(dim=-1, descending=True, stable=True)
    top_ids = order[:, :top_logprobs].masked_fill(nothing[:, None], -1)
    top = ordered[:, :top_logprobs].masked_fill(nothing[:, None], float("nan"))
    return ids, chosen, top_ids.contiguous(), top.contiguous()


def _all_greedy(top: Tensor, temperature: Tensor, top_p: Tensor, min_p: Tensor) -> bool:
    """Whether every row takes its likeliest token: nothing is drawn, infinite or NaN."""
    return (
        all(map(math.isfinite, top.flatten().tolist()))
        and all(t <= 0 for t in temperature.tolist())
        and not any(map(math.isnan, (*top_p.tolist(), *min_p.tolist())))
    )


def _filtered(
    value: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """Scaled logits (the largest is 0); -inf where a filter drops the token."""
    # An infinite temperature would turn -inf into NaN, which wins every comparison.
    value = value / temperature.clamp(max=torch.finfo(torch.float32).max)[:, None]
    unlikely = value < min_p.clamp(0, 1).log()[:, None]
    if not bool(((top_k > 0) | (top_p < 1)).any()):
        return value.masked_fill(unlikely, float("-inf"))
    ordered, order = value.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(value.shape[1], device=value.device)
    limit = torch.where(top_k > 0, top_k, value.shape[1])[:, None]
    ordered = ordered.masked_fill(rank >= limit, float("-inf"))
    mass = ordered.softmax(-1)
    # On the CPU: on a GPU a running sum is not deterministic, and torch may have to refuse it.
    likelier = mass.cpu().cumsum(-1).to(mass.device) - mass
    dropped = (likelier > top_p.clamp(min=0)[:, None]) & (top_p < 1)[:, None]
    ordered = ordered.masked_fill(dropped, float("-inf"))
    kept = torch.empty_like(value).scatter_(-1, order, ordered)
    return kept.masked_fill(unlikely, float("-inf"))
