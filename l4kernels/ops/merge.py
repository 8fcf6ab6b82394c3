"""Adding up attention over parts of the keys: sequence parallelism, split contexts."""

import torch
from torch import Tensor

from l4kernels.ops.attention import Attention
from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS, describe
from l4kernels.ops.contract import Contract
from l4kernels.ops.registry import Work, op, tensor_bytes
from l4kernels.ops.rope import HEAD_DIM


def _check_merge(args: Bound) -> None:
    contract = Contract(args)
    contract.dtype("outs", args.outs, FLOATS)
    contract.require(
        args.outs.dim() in (4, 5) and args.outs.shape[0] >= 1,
        "expected outs to be [N, T, H, D] or [N, B, S, H, D] with N >= 1, got "
        + describe(args.outs),
    )
    *leading, tokens, heads, head_dim = args.outs.shape
    contract.tensor("lses", torch.float32, [*leading, heads, tokens])
    if args.outs.is_cuda:
        contract.require(
            head_dim == HEAD_DIM,
            f"expected head size {HEAD_DIM} on CUDA, got {describe(args.outs)}",
        )
    contract.contiguous("outs", args.outs)
    contract.contiguous("lses", args.lses)


def _work_merge(args: Bound) -> Work:
    read = tensor_bytes(args.outs, args.lses)
    return Work(flops=2 * args.outs.numel(), bytes=read + read // args.outs.shape[0])


def _fake_merge(args: Bound) -> tuple[Tensor, Tensor]:
    outs, lses = args.outs, args.lses
    return outs.new_empty(outs.shape[1:]), lses.new_empty(lses.shape[1:])


@op(check=_check_merge, work=_work_merge, fake=_fake_merge, returns=Attention)
def merge_attention_states(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over all keys from attention over N disjoint parts of them.

    Each rank of a sequence-parallel group attends to its part of the keys and sends `out` and `lse`
    to the others; this gives what one rank with all keys would have computed.

    Args:
        outs: `[N, T, H, D]` (of `flash_prefill`) or `[N, B, S, H, D]` (of `flash_decode`) float32,
            bfloat16 or float16. D is 128 on CUDA.
        lses: float32 `[N, H, T]` or `[N, B, H, S]`; -inf where a part has no visible key: whatever
            `outs` holds there is not used.

    Returns:
        `Attention(out, lse)`: the shape of one part, `out` in the dtype of `outs`. Sums are
        float32 in the order of the parts, one rounding. A query without keys gives 0 and -inf.

    >>> outs = torch.tensor([1.0, 4.0]).view(2, 1, 1, 1)
    >>> lses = torch.tensor([1.0, 2.0]).log().view(2, 1, 1)
    >>> merge_attention_states(outs, lses)
    Attention(out=tensor([[[3.0000]]]), lse=tensor([[1.0986]]))
    """
    lse = lses.logsumexp(0)
    weights = torch.where(lses == float("-inf"), 0.0, (lses - lse).exp())
    weights = weights.mT.unsqueeze(-1)
    unseen = (lses == float("-inf")).mT.unsqueeze(-1)
    values = outs.float().mul(weights).masked_fill_(unseen, 0.0)
    return values.sum(0).to(outs.dtype), lse
