"""Walking one sequence's pages: what a query sees, and attention in blocks of queries."""

from collections.abc import Iterator

import torch
from torch import Tensor

from l4kernels.ops.check import FP8
from l4kernels.ops.contract import Contract
from l4kernels.ops.quant import fp8_values
from l4kernels.ops.views import as_float, part

_SCORE_ELEMENTS = 1 << 23


def visible_pieces(len_q: int, len_k: int, chunk: int) -> Iterator[tuple[int, int, int]]:
    """Splits one sequence at chunk edges: `(first query, end query, first visible key)`.

    Query i is at position p = len_k - len_q + i and sees the keys from its piece's first key to p.
    Queries at a negative position see nothing and belong to no piece.
    """
    start = len_k - len_q
    first = max(0, -start)
    while first < len_q:
        position = start + first
        low = position - position % chunk if chunk else 0
        end = min(len_q, low + chunk - start) if chunk else len_q
        yield first, end, low
        first = end


def check_cache_scales(contract: Contract) -> None:
    """`k_scale` and `v_scale`: one for each of Hkv heads, of an e4m3 cache."""
    dtype = contract.args.k_cache.dtype
    for name in ("k_scale", "v_scale"):
        given = getattr(contract.args, name) is not None
        contract.require(
            dtype == FP8 or not given, f"expected no {name} with a {dtype} cache, got one"
        )
        contract.tensor(name, torch.float32, ["Hkv"])


class PagedCache:
    """The keys and values of one sequence, gathered to float32."""

    def __init__(
        self,
        op_name: str,
        k_cache: Tensor,
        v_cache: Tensor,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
    ):
        self.op_name, self.page_size, self.num_pages = op_name, k_cache.shape[1], k_cache.shape[0]
        self.tensors = ((k_cache, k_scale), (v_cache, v_scale))

    def gather(self, table: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[low, high)` as `[Hkv, high - low, D]`."""
        first_page, end_page = low // self.page_size, -(-high // self.page_size)
        if end_page > table.shape[0]:
            raise IndexError(
                f"l4kernels.{self.op_name}: expected block_table to have a column for each of the "
                f"{end_page} pages of a sequence of {high} keys, got {table.shape[0]} columns"
            )
        pages = table[first_page:end_page]
        numbers = pages.tolist()
        if min(numbers) < 0 or max(numbers) >= self.num_pages:
            raise IndexError(
                f"l4kernels.{self.op_name}: expected the visible entries of block_table in "
                f"[0, {self.num_pages}), got {numbers}"
            )
        skipped = low - first_page * self.page_size
        in_order = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        first = numbers[0] * self.page_size + skipped if in_order else skipped
        gathered = []
        for cache, scale in self.tensors:
            own = cache if in_order else cache.index_select(0, pages)  # else nothing is copied
            rows = _head_rows(own, first, high - low)
            rows = fp8_values(rows) if cache.dtype == FP8 else as_float(rows)
            gathered.append(rows if scale is None else rows * scale[:, None, None])
        return gathered[0], gathered[1]


def _head_rows(pages: Tensor, first: int, count: int) -> Tensor:
    """`pages.flatten(0, 1)[first : first + count].transpose(0, 1)` of contiguous pages, in one
    call: `[Hkv, count, D]`."""
    _, _, heads, head_dim = pages.shape
    stride = heads * head_dim
    start = pages.storage_offset() + first * stride
    return pages.as_strided((heads, count, head_dim), (head_dim, stride, 1), start)


def attend_one(
    cache: PagedCache, q: Tensor, len_k: int, table: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """The last token of a sequence, which sees all keys of its chunk: no mask, and no blocks.

    Args:
        q: float32 `[Hkv, group, D]`, scaled.

    Returns:
        float32 `[Hkv, group, D]`, and the logarithms of the softmax denominators
        `[Hkv, group, 1]`; without keys zeros and -inf.
    """
    if len_k == 0:
        return torch.zeros_like(q), q.new_full((*q.shape[:2], 1), float("-inf"))
    k, v = cache.gather(table, (len_k - 1) // chunk * chunk if chunk else 0, len_k)
    weights, lse = _softmax(torch.bmm(q, k.mT))
    return torch.bmm(weights, v), lse


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Over the last dimension, and the logarithm of its denominators `[..., 1]`.

    Cheaper than `logsumexp`, and as exact: the largest weight is at least 1 / n. Where it is NaN
    the largest score is infinite, as the sum then is, or NaN.
    """
    weights = scores.softmax(-1)
    largest = weights.amax(-1, keepdim=True).nan_to_num_(1.0)
    return weights, scores.amax(-1, keepdim=True).sub_(largest.log_())


def _attend(
    q: Tensor, k: Tensor, v: Tensor, offset: int, softmax_scale: float, out: Tensor, lse: Tensor
) -> None:
    """One causal problem: query row i sees keys `[0, offset + i]`.

    Works through blocks of queries so that the scores stay small; `q` and `out` are
    `[L, Hq, D]`, `lse` is `[Hq, L]`, `k` and `v` are float32 `[Hkv, S, D]`.
    """
    length, num_heads, head_dim = q.shape
    kv_heads, group = k.shape[0], num_heads // k.shape[0]
    elements = _SCORE_ELEMENTS << 3 * q.is_cuda  # a GPU wants fewer and larger blocks
    block = max(1, min(length, 128, elements // (num_heads * k.shape[1])))
    for i in range(0, length, block):
        rows = min(block, length - i)
        high = offset + i + rows
        grouped = as_float(part(q, i, i + rows)).mul(softmax_scale)
        if rows > 1:
            grouped = grouped.view(rows, kv_heads, group, head_dim).permute(1, 2, 0, 3)
        grouped = grouped.reshape(kv_heads, group * rows, head_dim)
        scores = torch.bmm(grouped, part(k, 0, high, dim=1).mT)
        if rows > 1:
            key = torch.arange(high, device=q.device)
            query = torch.arange(offset + i, high, device=q.device)
            hidden = key > query[:, None]
            scores.view(kv_heads, group, rows, high).masked_fill_(hidden, float("-inf"))
        weights, block_lse = _softmax(scores)
        value = torch.bmm(weights, part(v, 0, high, dim=1))
        part(out, i, i + rows).copy_(value.view(num_heads, rows, head_dim).transpose(0, 1))
        part(lse, i, i + rows, dim=1).copy_(block_lse.view(num_heads, rows))


def _is_plain(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> bool:
    """Every score and value is finite: of others the pass below loses some (a short row: 0)."""
    extremes = [torch.aminmax(t) for t in (q, k, v)]  # 20 times as fast as the infinity norm
    q_most, k_most, v_most = (max(-float(low), float(high)) for low, high in extremes)
    return q_most * k_most * q.shape[-1] * softmax_scale + v_most < torch.finfo(torch.float32).max


def _attend_whole(
    q: Tensor, k: Tensor, v: Tensor, length: int, softmax_scale: float, out: Tensor, lse: Tensor
) -> None:
    """Causal problems of `length` queries and keys each, one after the other, in one CPU pass.

    The same sums as `_attend`'s; the public call does not return lse.
    """
    heads = q.float().unflatten(0, (-1, length)).transpose(1, 2)
    group = q.shape[1] // k.shape[0]
    k, v = (t.unflatten(1, (-1, length)).transpose(0, 1) for t in (k, v))
    # Without a copy where there is one KV head.
    k, v = (t.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(1, 2) for t in (k, v))
    value, value_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        heads, k, v, 0.0, True, scale=softmax_scale
    )
    out.copy_(value.transpose(1, 2).flatten(0, 1))
    lse.copy_(value_lse.transpose(0, 1).flatten(1))


def attend_sequence(
    cache: PagedCache,
    q: Tensor,
    len_k: int,
    table: Tensor,
    softmax_scale: float,
    chunk: int,
    out: Tensor,
    lse: Tensor,
) -> None:
    start = len_k - q.shape[0]
    pieces = list(visible_pieces(q.shape[0], len_k, chunk))
    while pieces:
        first, end, low = pieces.pop(0)
        whole = q.is_cpu and start + first == low
        length = end - first
        # On a CPU, chunks that are seen from their first token on go through together.
        while whole and pieces and pieces[0][1] - pieces[0][0] == length:
            end = pieces.pop(0)[1]
        k, v = cache.gather(table, low, start + end)
        queries, values = part(q, first, end), part(out, first, end)
        lses = part(lse, first, end, dim=1)
        if whole and _is_plain(queries, k, v, softmax_scale):
            _attend_whole(queries, k, v, length, softmax_scale, values, lses)
            continue
        offset = start + first - low
        for i in range(0, end - first, length):
            _attend(
                part(queries, i, i + length),
                part(k, i, i + offset + length, dim=1),
                part(v, i, i + offset + length, dim=1),
                offset,
                softmax_scale,
                part(values, i, i + length),
                part(lses, i, i + length, dim=1),
            )
