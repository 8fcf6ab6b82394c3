"""How a step of decoding is divided among CTAs, planned once for all layers of a kind."""

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.contract import Contract
from l4kernels.ops.registry import Work, op

MAX_DECODE_TOKENS = 16
PLAN_WORDS = 16 + 256 * 16 + 256 * 8
"""Of a plan, before the lengths that it was made from: csrc/kernels/flash_decode/plan.h."""

_KIND = 0x6C346B31
_ROWS, _TILE = 64, 64  # queries x heads of a work item, keys of a tile
_MAX_GROUP = 16


def _check_flash_decode_plan(args: Bound) -> None:
    contract = Contract(args)
    contract.tensor("seqlens_k", torch.int32, ["B"], "contiguous")
    contract.require(
        1 <= args.tokens <= MAX_DECODE_TOKENS,
        f"expected tokens from 1 to {MAX_DECODE_TOKENS}, got {args.tokens}; longer pieces are not "
        f"decoded",
    )
    contract.require(
        args.kv_heads >= 1 and args.num_heads >= 1 and args.num_heads % args.kv_heads == 0,
        f"expected num_heads to be a positive multiple of kv_heads, got {args.num_heads} and "
        f"{args.kv_heads}",
    )
    if args.seqlens_k.is_cuda:
        contract.require(
            args.num_heads // args.kv_heads <= _MAX_GROUP,
            f"expected at most {_MAX_GROUP} q heads per kv head on CUDA, got {args.num_heads} and "
            f"{args.kv_heads}",
        )
    contract.require(args.chunk >= 0, f"expected chunk to be 0 (off) or positive, got {args.chunk}")
    contract.require(
        args.capacity >= 0,
        f"expected capacity to be the keys that a row of block_table addresses, got "
        f"{args.capacity}",
    )


def _header(
    batch: int, num_heads: int, kv_heads: int, capacity: int, tokens: int, chunk: int
) -> list[int]:
    """Kind and shape of a call; the grid, which comes behind them, is the kernels' own."""
    row_blocks = -(-tokens * num_heads // (kv_heads * _ROWS))
    tiles = (2**31 - 1) // max(batch * kv_heads * row_blocks, 1)
    capacity = min(capacity, tiles * _TILE, 2**31 - 16)
    return [_KIND, batch, kv_heads, row_blocks, tokens, chunk, capacity]


@op(
    check=_check_flash_decode_plan,
    work=lambda args: Work(0.0, 4.0 * (PLAN_WORDS + 2 * args.seqlens_k.shape[0])),
    fake=lambda args: args.seqlens_k.new_empty(PLAN_WORDS + args.seqlens_k.shape[0]),
)
def flash_decode_plan(
    seqlens_k: Tensor,
    *,
    num_heads: int,
    kv_heads: int,
    capacity: int,
    tokens: int = 1,
    chunk: int = 0,
) -> Tensor:
    """What `flash_decode` and `flash_decode_append` of one step share, for their `plan`.

    It serves every call on the same lengths with the same shapes and chunk: all layers of a kind,
    one after the other (calls that share a plan must not run at once). Without it each call plans
    by a launch of its own.

    Args:
        seqlens_k: int32 `[B]`, all keys including the new tokens; 0 for an idle row of a batch.
        num_heads, kv_heads: of q, and of the cache.
        capacity: keys that a row of the block table addresses: `block_table.shape[1] * page_size`.
        tokens: new ones of each sequence, from 1 to 16.
        chunk: 0 for none.

    Returns:
        int32 `[6160 + B]`, of which only those ops know what it says.

    >>> two = torch.tensor([2], dtype=torch.int32)
    >>> plan = flash_decode_plan(two, num_heads=1, kv_heads=1, capacity=2)
    >>> k = v = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    >>> from l4kernels.ops import flash_decode
    >>> page = torch.zeros(1, 1, dtype=torch.int32)
    >>> q = torch.zeros(1, 1, 1, 1)
    >>> flash_decode(q, k, v, two, page, softmax_scale=1.0, plan=plan).out.item()
    2.0
    """
    batch = seqlens_k.shape[0]
    header = _header(batch, num_heads, kv_heads, capacity, tokens, chunk)
    plan = seqlens_k.new_zeros(PLAN_WORDS + batch)
    plan[: len(header)] = torch.tensor(header, dtype=torch.int32, device="cpu")
    plan[PLAN_WORDS:] = seqlens_k
    return plan


def check_plan(contract: Contract, batch: int) -> None:
    """The `plan` of an op that takes one, a None among them."""
    contract.tensor("plan", torch.int32, [PLAN_WORDS + batch], "contiguous")


def require_plan(
    op_name: str,
    plan: Tensor | None,
    seqlens_k: Tensor,
    heads: tuple[int, int],
    capacity: int,
    tokens: int,
    chunk: int,
) -> None:
    """Raises `IndexError` where a plan was made for another call, or for other lengths."""
    if plan is None:
        return
    lengths = seqlens_k.tolist()
    header = _header(len(lengths), *heads, capacity, tokens, chunk)
    if plan[: len(header)].tolist() != header or plan[PLAN_WORDS:].tolist() != lengths:
        raise IndexError(
            f"l4kernels.{op_name}: expected plan to be flash_decode_plan of this call's seqlens_k, "
            f"heads, tokens, chunk and block table, got one of another; make it anew for every step"
        )
