"""How flash_prefill divides a batch: made once, for all layers that see the same keys."""

import itertools

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.check import describe
from l4kernels.ops.contract import Contract
from l4kernels.ops.registry import Work, op, tensor_bytes

_ROWS, _KEYS = 128, 128
"""Of a tile of queries (tokens x heads of a KV head), and of keys."""
_HEADER, _PIECE, _WHOLE = 12, 4, 1 << 16
"""Words of the header and of a piece; a piece that is all of its tile. As in schedule.h."""
_MAX_CTAS, _WAVES, _MAX_CUT = 256, 5, 3
_LIMIT = 2**31 - 1


def plan_words(rows: int, batch: int, max_seqlen_q: int, group: int) -> int:
    """Of a plan, from shapes alone: the same on every GPU, and for all lengths.

    >>> plan_words(17, 1, 17, 5)
    5139
    """
    tokens = _ROWS // group
    tiles = min(rows // tokens + batch, batch * -(-min(max_seqlen_q, rows) // tokens))
    pieces = max(tiles, _WAVES * _MAX_CTAS) + min(tiles, _MAX_CUT * _MAX_CTAS)
    return _HEADER + _PIECE * pieces + 2 * batch + 1


def plan_header(
    rows: int,
    batch: int,
    max_seqlen_q: int,
    num_heads: int,
    kv_heads: int,
    chunk: int,
    capacity: int,
) -> list[int]:
    """What a plan is made for: its first words. The CTAs that share it follow, 0 for any."""
    bound = min(max_seqlen_q, rows)
    return [rows, batch, bound, num_heads, kv_heads, chunk, min(capacity, _LIMIT)]


def _lengths(cu_seqlens_q: Tensor, seqlens_k: Tensor) -> Tensor:
    """The last words of a plan: what it was made from."""
    return torch.cat([cu_seqlens_q, seqlens_k])


def require_prefill_plan(
    plan: Tensor, header: list[int], cu_seqlens_q: Tensor, seqlens_k: Tensor
) -> None:
    """Raises `IndexError` for a plan of another call, or of other lengths."""
    lengths = _lengths(cu_seqlens_q, seqlens_k)
    if not torch.equal(plan[-len(lengths) :], lengths):
        raise IndexError(
            "l4kernels.flash_prefill: expected a plan of flash_prefill_plan() for this call's "
            "cu_seqlens_q and seqlens_k, got one of other lengths; make it anew for every pass"
        )
    if plan[: len(header)].tolist() != header:
        raise IndexError(
            f"l4kernels.flash_prefill: expected a plan of flash_prefill_plan() for the rows, "
            f"sequences, max_seqlen_q, q heads, kv heads, chunk and keys of the block table "
            f"{header}, got one for {plan[: len(header)].tolist()}"
        )


def require_sequences(
    op_name: str, cu_seqlens_q: Tensor, seqlens_k: Tensor, rows: int, max_seqlen_q: int
) -> list[int]:
    """The bounds of each sequence's queries; `IndexError` names what is wrong with the lengths."""
    bounds = cu_seqlens_q.tolist()
    lengths = [end - first for first, end in itertools.pairwise(bounds)]
    if bounds[0] != 0 or bounds[-1] > rows or min(lengths, default=0) < 0:
        raise IndexError(
            f"l4kernels.{op_name}: expected cu_seqlens_q to ascend from 0 to at most "
            f"{rows} (the rows of q), got {bounds}"
        )
    if min(seqlens_k.tolist(), default=0) < 0:
        raise IndexError(f"l4kernels.{op_name}: expected seqlens_k >= 0, got {seqlens_k.tolist()}")
    if max(lengths, default=0) > max_seqlen_q:
        raise IndexError(
            f"l4kernels.{op_name}: expected max_seqlen_q to bound the sequences, got "
            f"{max_seqlen_q} for lengths {lengths}"
        )
    return bounds


def _check_flash_prefill_plan(args: Bound) -> None:
    contract = Contract(args)
    contract.dtype("cu_seqlens_q", args.cu_seqlens_q, (torch.int32,))
    contract.require(
        args.cu_seqlens_q.dim() == 1 and args.cu_seqlens_q.shape[0] >= 1,
        f"expected cu_seqlens_q to be [B + 1], got {describe(args.cu_seqlens_q)}",
    )
    contract.sizes["B"] = args.cu_seqlens_q.shape[0] - 1
    contract.tensor("seqlens_k", torch.int32, ["B"])
    heads, kv_heads = args.num_heads, args.kv_heads
    contract.require(
        kv_heads >= 1 and heads >= 1 and heads % kv_heads == 0 and heads <= 16 * kv_heads,
        f"expected num_heads to be 1 to 16 times kv_heads, got {heads} and {kv_heads}",
    )
    limits = {"rows": _LIMIT, "chunk": _LIMIT, "max_seqlen_q": 2**63, "capacity": 2**63}
    for name, most in limits.items():
        value = getattr(args, name)
        contract.require(0 <= value <= most, f"expected {name} from 0 to {most}, got {value}")


def _words(args: Bound) -> int:
    batch, group = args.seqlens_k.shape[0], args.num_heads // args.kv_heads
    return plan_words(args.rows, batch, args.max_seqlen_q, group)


def _work_flash_prefill_plan(args: Bound) -> Work:
    lengths = tensor_bytes(args.cu_seqlens_q) + tensor_bytes(args.seqlens_k)
    return Work(0, 2 * lengths + 4 * _HEADER)


def _key_tiles(tile: int, len_q: int, len_k: int, tokens: int, chunk: int) -> int:
    """That some query of the tile sees."""
    first = len_k - len_q + tile * tokens
    end = min(first + tokens, len_k)
    low = max(first, 0) // chunk * chunk if chunk else 0
    return max(0, -(-end // _KEYS) - low // _KEYS) if end > 0 else 0


@op(
    check=_check_flash_prefill_plan,
    work=_work_flash_prefill_plan,
    fake=lambda args: args.seqlens_k.new_empty(_words(args)),
)
def flash_prefill_plan(
    cu_seqlens_q: Tensor,
    seqlens_k: Tensor,
    *,
    rows: int,
    num_heads: int,
    kv_heads: int,
    capacity: int,
    max_seqlen_q: int,
    chunk: int = 0,
) -> Tensor:
    """What `flash_prefill` would otherwise plan in each call: once for all layers of a kind.

    The plan holds for calls with these lengths, and with the shapes that it names: another call
    that gets it is an error. On a GPU with few tiles of queries it cuts their keys into pieces;
    this reference leaves them whole.

    Args:
        cu_seqlens_q: int32 `[B + 1]`, where each sequence's queries begin, and the end.
        seqlens_k: int32 `[B]`, all keys of a sequence including the new tokens.
        rows: of q in the calls.
        num_heads, kv_heads: of q and of the cache; at most 16 q heads per KV head.
        capacity: keys that a row of the block table has a place for: `max_pages * page_size`.
        max_seqlen_q, chunk: as in the calls.

    Returns:
        int32 `[words]`, opaque.

    Raises:
        IndexError: `cu_seqlens_q` out of order or beyond `rows`, a sequence longer than
            `max_seqlen_q`, a negative length.

    >>> i32 = lambda *values: torch.tensor(values, dtype=torch.int32)
    >>> plan = flash_prefill_plan(i32(0, 2), i32(2), rows=2, num_heads=1, kv_heads=1, capacity=16,
    ...                           max_seqlen_q=2)
    >>> plan[:7].tolist()
    [2, 1, 2, 1, 1, 0, 16]
    """
    bounds = require_sequences("flash_prefill_plan", cu_seqlens_q, seqlens_k, rows, max_seqlen_q)
    batch, group = seqlens_k.shape[0], num_heads // kv_heads
    tokens = _ROWS // group
    costs = [
        (_key_tiles(tile, bounds[b + 1] - bounds[b], length, tokens, chunk), b, tile)
        for b, length in enumerate(seqlens_k.tolist())
        for tile in range(-(-(bounds[b + 1] - bounds[b]) // tokens))
    ]
    pieces = [(b, tile, 0, _WHOLE) for _, b, tile in sorted(costs, reverse=True)]
    words = plan_header(rows, batch, max_seqlen_q, num_heads, kv_heads, chunk, capacity)
    words += [0, bounds[-1], len(pieces), 0, 1, *itertools.chain(*pieces)]
    plan = seqlens_k.new_zeros(plan_words(rows, batch, max_seqlen_q, group))
    plan[: len(words)] = torch.tensor(words, dtype=torch.int32, device=plan.device)
    plan[-2 * batch - 1 :] = _lengths(cu_seqlens_q, seqlens_k)
    return plan
