"""Token embeddings, with image features merged in."""

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS
from l4kernels.ops.contract import Contract
from l4kernels.ops.indices import require_indices
from l4kernels.ops.registry import Work, op, tensor_bytes


def _check_embed(args: Bound) -> None:
    contract = Contract(args)
    contract.tensor("input_ids", (torch.int64, torch.int32), ["T"])
    contract.tensor("weight", FLOATS, ["V", "D"], "rows")
    contract.require(
        (args.image_features is None) == (args.image_rows is None),
        "expected image_features and image_rows together, got one without the other",
    )
    contract.tensor("image_features", args.weight.dtype, ["R", "D"], "rows")
    contract.tensor("image_rows", torch.int32, ["T"])


def _work_embed(args: Bound) -> Work:
    rows = args.input_ids.shape[0] * args.weight.shape[1] * args.weight.element_size()
    return Work(flops=0, bytes=2 * rows + tensor_bytes(args.input_ids, args.image_rows))


def _fake_embed(args: Bound) -> Tensor:
    return args.weight.new_empty(args.input_ids.shape[0], args.weight.shape[1])


@op(check=_check_embed, work=_work_embed, fake=_fake_embed)
def embed(
    input_ids: Tensor,
    weight: Tensor,
    image_features: Tensor | None = None,
    image_rows: Tensor | None = None,
) -> Tensor:
    """Rows of the embedding table; at image positions, rows of the image features instead.

    Args:
        input_ids: int64 or int32 `[T]`. Ids at image positions are not read.
        weight: `[V, D]` float32, bfloat16 or float16.
        image_features: `[R, D]`, the dtype of `weight`; the projected patches of all images.
        image_rows: int32 `[T]`: -1 at a text token, else the row of `image_features`.

    Returns:
        `[T, D]`, the dtype of `weight`; a copy, nothing is scaled.

    Raises:
        IndexError: an id outside the vocabulary, or a row outside the image features.

    >>> embed(torch.tensor([2, 0]), torch.tensor([[0.0], [1.0], [2.0]]))
    tensor([[2.],
            [0.]])
    """
    if image_features is None or image_rows is None:
        require_indices("embed", "input_ids", input_ids, 0, weight.shape[0])
        return weight.index_select(0, input_ids)
    _, last = require_indices("embed", "image_rows", image_rows, -1, image_features.shape[0])
    if last < 0:
        return embed.body(input_ids, weight)
    text = (image_rows < 0).nonzero().squeeze(1)
    image = (image_rows >= 0).nonzero().squeeze(1)
    text_ids = input_ids[text]
    require_indices("embed", "input_ids", text_ids, 0, weight.shape[0])
    out = weight.new_empty(input_ids.shape[0], weight.shape[1])
    out.index_copy_(0, text, weight.index_select(0, text_ids))
    return out.index_copy_(0, image, image_features.index_select(0, image_rows[image]))
