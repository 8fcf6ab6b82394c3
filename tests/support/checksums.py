"""A model whose next token is a checksum of all that it must have seen.

It stands in for `Llama4` where an engine is tested thousands of times: a step costs next to
nothing, and any key that is missing, stale, of another sequence or of another chunk changes the
token. Its global layer keeps what each position holds; its chunked layer keeps at each position a
checksum of the global layer up to there, so that its keys depend on the whole prefix, as those of a
real model do. `answer` says the same in plain Python.
"""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from l4kernels import Llama4Config
from l4kernels.engine.kv_cache import CHUNKED, GLOBAL
from l4kernels.engine.llama4 import Llama4
from l4kernels.layers.options import ModelOptions
from tests.support.tiny import VISION

VOCAB, PATCH, PRIME = 96, 90, 65521
TILE_TOKENS = 4
LAYERS = {"both": [0, 1], "global": [0, 0], "chunked": [1, 1]}


def config(chunk: int, layers: str = "both", context: int = 512) -> Llama4Config:
    text = {
        "model_type": "llama4_text", "vocab_size": VOCAB, "hidden_size": 8, "head_dim": 4,
        "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 2,
        "no_rope_layers": LAYERS[layers], "num_local_experts": 0, "intermediate_size": 8,
        "intermediate_size_mlp": 8, "attention_chunk_size": chunk, "floor_scale": 8,
        "max_position_embeddings": context, "eos_token_id": None,
    }  # fmt: skip
    return Llama4Config.from_dict(
        {"model_type": "llama4", "image_token_index": PATCH, "text_config": text,
         "vision_config": VISION}
    )  # fmt: skip


class Pictures(nn.Module):
    """The features of a tile: numbers that its pixels and the place of a row in it decide."""

    def forward(self, pixels: Tensor) -> Tensor:
        shown = pixels.flatten(1).double().sum(1).mul(1000).round().long() % 9973
        rows = shown[:, None] + VOCAB + torch.arange(TILE_TOKENS)
        return rows.flatten().float()[:, None].expand(-1, 8)


class ChecksumModel(Llama4):
    """Only what an engine calls of a model."""

    def __init__(self, chunk: int = 16, layers: str = "both", context: int = 512):
        options = ModelOptions(torch.float32, torch.device("cpu"))
        super().__init__(config(chunk, layers, context), options)
        self.vision = Pictures()

    def embed(self, ids, features=None, rows=None):
        values = ids.float()
        if rows is not None:
            values = torch.where(rows < 0, values, features[rows.clamp(min=0).long(), 0])
        return values[:, None].expand(-1, 8)

    def forward(self, x, metadata, caches):
        x = x if x.is_floating_point() else self.embed(x)
        kinds = [int(self.config.chunk(layer) > 0) for layer in range(2)]
        at = {kind: (metadata[layer], caches[layer].k) for layer, kind in enumerate(kinds)}
        if GLOBAL not in at:
            return _chunk_alone(x, *at[CHUNKED], self.config.attention_chunk_size)
        meta, keys = at[GLOBAL]
        write(keys, meta.slots, x[:, 0])
        if meta.max_seqlen_q > 1:
            if CHUNKED in at:
                write(at[CHUNKED][1], at[CHUNKED][0].slots, _prefixes(meta, keys))
            return x
        sums = _sums(meta, keys, 0, 1)
        if CHUNKED in at:
            write(at[CHUNKED][1], at[CHUNKED][0].slots, sums)
            sums = sums + _sums(*at[CHUNKED], self.config.attention_chunk_size, 2)
        return (sums % PRIME).float()[:, None].expand(-1, 8)

    def compute_logits(self, hidden):
        logits = hidden.new_zeros(len(hidden), VOCAB, dtype=torch.float32)
        return logits.scatter_(1, hidden[:, :1].long() % PATCH, 1e4)


def _chunk_alone(x, meta, keys, chunk):
    write(keys, meta.slots, x[:, 0])
    if meta.max_seqlen_q > 1:
        return x
    return (_sums(meta, keys, chunk, 2) % PRIME).float()[:, None].expand(-1, 8)


def write(keys: Tensor, slots: Tensor, values: Tensor) -> None:
    """Where slots are -1, nothing; without asking which, as a captured step must."""
    keys = keys.view(keys.shape[0] * keys.shape[1], -1)[:, 0]
    size = len(keys)
    places = torch.where(slots < 0, size, slots)
    written = torch.zeros(size + 1, dtype=torch.bool).scatter_(0, places, True)[:size]
    fresh = torch.zeros(size + 1).scatter_(0, places, values.float())[:size]
    keys.copy_(torch.where(written, fresh, keys))


def _weights(positions: int | Tensor, kind: int) -> int | Tensor:
    return (positions * (2749 * kind) + positions * positions * 31) % 4093 + 1


def contents_of(meta, keys, rows=slice(None)) -> Tensor:
    """`[B, positions]`, what the pages of each sequence hold."""
    return keys[meta.block_table[rows].clamp(min=0).long(), :, 0, 0].flatten(1).long()


def _sums(meta, keys, chunk: int, kind: int) -> Tensor:
    seen, positions = contents_of(meta, keys), meta.positions[:, None]
    at = torch.arange(seen.shape[1])
    visible = (at < meta.seqlens_k[:, None]) & (
        at >= (positions - positions % chunk if chunk else 0)
    )
    # What is not visible may be anything, also what no integer can hold.
    return torch.where(visible, seen * _weights(at, kind), 0).sum(1) % PRIME


def _prefixes(meta, keys) -> Tensor:
    """Checksums of the global layer up to each of the new tokens."""
    parts, lengths = [], meta.seqlens_k.tolist()
    for row, (length, new) in enumerate(
        zip(lengths, meta.cu_seqlens_q.diff().tolist(), strict=True)
    ):
        seen = contents_of(meta, keys, slice(row, row + 1))[0, :length]
        parts.append(((seen * _weights(torch.arange(length), 1)).cumsum(0) % PRIME)[length - new :])
    return torch.cat(parts)


def contents(ids: Iterable[int], tiles: Tensor | None = None) -> list[int]:
    """What each position of a prompt holds: its token, or what the image shows there."""
    if tiles is None:
        return list(ids)
    features = iter(Pictures()(tiles)[:, 0].long().tolist())
    return [next(features) if i == PATCH else i for i in ids]


def answer(prompt: Iterable[int], new: int, chunk: int, layers: str = "both",
           stop: Iterable[int] = ()) -> list[int]:  # fmt: skip
    """The tokens that must follow a prompt (`contents`), up to the first of `stop`."""
    stop, tokens = set(stop), []
    for token in _following(prompt, chunk, layers):
        tokens.append(token)
        if len(tokens) == new or token in stop:
            return tokens
    raise AssertionError("it never ends")


def _following(prompt: Iterable[int], chunk: int, layers: str) -> Iterator[int]:
    whole, window, coming = 0, 0, list(prompt)
    for position in itertools.count():
        held = coming.pop(0)
        whole = (whole + held * _weights(position, 1)) % PRIME
        window = 0 if chunk and position % chunk == 0 else window
        window += (held if layers == "chunked" else whole) * _weights(position, 2)
        if not coming:
            total = {"both": whole + window, "global": whole, "chunked": window}[layers]
            coming.append(total % PRIME % PATCH)
            yield coming[-1]
