"""GGUF files of Llama 4's text model, as llama.cpp writes them.

Weights that are quantised are dequantised by the `gguf` library, whose authors define the types.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from l4kernels.checkpoint.convert.gguf_config import config_of
from l4kernels.checkpoint.convert.gguf_header import GgufHeader, GgufTensor, Types, read_header
from l4kernels.checkpoint.convert.writing import Parts, Source, checked_config
from l4kernels.checkpoint.files.layout import layout
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.inputs.extras import require
from l4kernels.inputs.files import shown
from l4kernels.model.config import Llama4Config

_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_PART, _PIECE = 1 << 26, 1 << 17
"""Numbers in memory at once, and those that one thread dequantises in the processor's cache; at
least a row."""
_BLOCK = {
    "input_layernorm.weight": "attn_norm",
    "post_attention_layernorm.weight": "ffn_norm",
    "self_attn.q_proj.weight": "attn_q",
    "self_attn.k_proj.weight": "attn_k",
    "self_attn.v_proj.weight": "attn_v",
    "self_attn.o_proj.weight": "attn_output",
    "feed_forward.gate_proj.weight": "ffn_gate",
    "feed_forward.up_proj.weight": "ffn_up",
    "feed_forward.down_proj.weight": "ffn_down",
    "feed_forward.router.weight": "ffn_gate_inp",
    "feed_forward.shared_expert.gate_proj.weight": "ffn_gate_shexp",
    "feed_forward.shared_expert.up_proj.weight": "ffn_up_shexp",
    "feed_forward.shared_expert.down_proj.weight": "ffn_down_shexp",
}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_ROPE = "rope_freqs.weight"


def gguf_file(source: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the model in a folder that has one."""
    if source.is_file() and _is_gguf(source):
        return source
    if not source.is_dir():
        return None
    every = sorted(source.glob("*.gguf"))
    found = [file for file in every if not file.name.startswith("mmproj")] or every[:1]
    first = [f for f in found if (m := _SPLIT.fullmatch(f.name)) is None or int(m[2]) == 1]
    if len(first) > 1:
        names = shown(", ".join(file.name for file in first), 200)
        raise CheckpointError(f"{source}: holds {len(first)} GGUF models ({names}); name one file")
    return first[0] if first else None


def open_gguf(file: Path) -> Source:
    """The model in a GGUF file, or in the parts that one was split into, checked.

    Raises:
        CheckpointError: it is no Llama 4 text model, damaged, or of a type that cannot be read.
        MissingExtra: the library `gguf` is not installed.
    """
    require("gguf", "convert")
    headers = [read_header(part, _types()) for part in _parts(file)]
    fields, tensors = headers[0].fields, _merged(headers)
    factors = tensors.pop(_ROPE, None)
    rope = None if factors is None else _rope_factors(factors)
    data, texts, notes = config_of(file, fields, {n: t.shape for n, t in tensors.items()}, rope)
    config = checked_config(data, file)
    made = _made(config, file, tensors)
    used: set[str] = set()
    kinds: dict[str, int] = {}
    for tensor in tensors.values():
        kinds[tensor.type] = kinds.get(tensor.type, 0) + tensor.elements
    for name, _ in made.values():
        used |= {*name}
    if extra := [name for name in tensors if name not in used]:
        _fail(file, f"{len(extra)} tensors are unexpected: {shown(', '.join(extra[:3]), 200)}")
    total = sum(kinds.values())
    shares = (f"{kinds[k] / total:.0%} {k}" for k in sorted(kinds, key=lambda k: -kinds[k]))
    return Source(
        file,
        f"GGUF, {', '.join(shares)}",
        data,
        {name: parts for name, (_, parts) in made.items()},
        texts,
        notes + _beside(file),
    )


def _is_gguf(file: Path) -> bool:
    if file.suffix == ".gguf":
        return True
    with open(file, "rb") as stream:
        return stream.read(4) == b"GGUF"


def _fail(file: Path, why: str) -> NoReturn:
    raise CheckpointError(f"{file}: {why}")


def _types() -> Types:
    import gguf

    sizes = gguf.GGML_QUANT_SIZES
    return Types(
        {int(kind): kind.name for kind in sizes}, {kind.name: s for kind, s in sizes.items()}
    )


def _parts(file: Path) -> list[Path]:
    """The file, or all files that a model was split into."""
    match = _SPLIT.fullmatch(file.name)
    if match is None:
        return [file]
    count = int(match[3])
    if not 1 <= count <= 999 or int(match[2]) != 1:
        _fail(file, f"a part of a split model; name the first, {match[1]}-00001-of-{match[3]}.gguf")
    parts = [file.with_name(f"{match[1]}-{n:05}-of-{match[3]}.gguf") for n in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        _fail(file, f"the model was split into {count} files, of which {missing[0]} is missing")
    return parts


def _merged(headers: list[GgufHeader]) -> dict[str, GgufTensor]:
    first = headers[0]
    if len(headers) == 1 and first.fields.get("split.count", 1) not in (0, 1):
        _fail(first.file, "the first of several files, whose names have been changed")
    tensors: dict[str, GgufTensor] = {}
    for number, header in enumerate(headers):
        said = (header.fields.get("split.no", number), header.fields.get("split.count", 1))
        if len(headers) > 1 and said != (number, len(headers)):
            _fail(header.file, f"expected part {number} of {len(headers)}, got {shown(said)}")
        for name, tensor in header.tensors.items():
            if name in tensors:
                _fail(header.file, f"{shown(name)} is also in {tensors[name].file.name}")
            tensors[name] = tensor
    return tensors


def _beside(file: Path) -> list[str]:
    images = sorted(f.name for f in file.parent.glob("mmproj*.gguf"))
    return [f"the text model alone: {images[0]} (images) is left out"] if images else []


def _rope_factors(tensor: GgufTensor) -> list[float]:
    if len(tensor.shape) != 1 or tensor.type != "F32" or tensor.elements > 512:
        _fail(tensor.file, f"expected {_ROPE} to be a short list of F32")
    factors: list[float] = np.memmap(tensor.file, "<f4", "r", tensor.start, tensor.shape).tolist()
    return factors


def _made(
    config: Llama4Config, file: Path, tensors: dict[str, GgufTensor]
) -> dict[str, tuple[tuple[str, ...], Parts]]:
    """Of each tensor of the layout: what it is made of, and what makes it."""

    def one(name: str, shape: tuple[int, ...]) -> GgufTensor:
        tensor = tensors.get(name)
        if tensor is None:
            _fail(file, f"{name} is missing, which its metadata ask for")
        if tensor.shape != shape:
            want, got = list(shape), shown(list(tensor.shape))
            _fail(tensor.file, f"expected {name} to be {want}, rows first, got {got}")
        if tensor.type not in _readable():
            known = ", ".join(_readable())
            _fail(tensor.file, f"{name} is of type {tensor.type}; the gguf library reads {known}")
        return tensor

    made: dict[str, tuple[tuple[str, ...], Parts]] = {}
    for name, slot in layout(config).items():
        shape = slot.shape
        if name in _TOP:
            made[name] = (_TOP[name],), partial(_whole, one(_TOP[name], shape))
            continue
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        if rest in _BLOCK:
            stored = f"blk.{layer}.{_BLOCK[rest]}.weight"
            made[name] = (stored,), partial(_whole, one(stored, shape))
            continue
        experts, rows, columns = shape
        kinds = ("down",) if rest.endswith("down_proj") else ("gate", "up")
        names = tuple(f"blk.{layer}.ffn_{kind}_exps.weight" for kind in kinds)
        found = [one(n, (experts, columns // len(kinds), rows)) for n in names]
        made[name] = names, partial(_stacked, found)
    return made


def _readable() -> list[str]:
    from gguf import quants

    return ["F32", "F16", *(kind.name for kind in quants._type_traits)]


def _whole(tensor: GgufTensor) -> Iterator[Tensor]:
    step = max(1, _PART * tensor.shape[0] // tensor.elements)
    if len(tensor.shape) == 1:
        yield _rows(tensor, 0, 1)[0]
        return
    for row in range(0, tensor.shape[0], step):
        yield _rows(tensor, row, min(step, tensor.shape[0] - row))


def _stacked(tensors: list[GgufTensor]) -> Iterator[Tensor]:
    """Of each expert, the transposed weights side by side."""
    experts, rows, _ = tensors[0].shape
    for expert in range(experts):
        # Turned before they are joined, which is several times as fast as both at once.
        parts = (_rows(tensor, expert * rows, rows) for tensor in tensors)
        yield torch.cat([part.t().contiguous() for part in parts], 1)


def _rows(tensor: GgufTensor, first: int, count: int) -> Tensor:
    """Rows of a tensor in bfloat16, all but the last of its dimensions taken as one."""
    import gguf

    kind: Any = gguf.GGMLQuantizationType[tensor.type]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    columns = tensor.shape[-1]
    stride = columns // block * size
    start = tensor.start + first * stride
    stored = np.memmap(tensor.file, np.uint8, "r", start, (count, stride))
    rows = torch.empty(count, columns, dtype=torch.bfloat16)

    def piece(begin: int) -> None:
        part = stored[begin : begin + step]
        with np.errstate(all="ignore"):  # a scale may be anything; the result is checked
            data = np.array(gguf.quants.dequantize(part, kind), np.float32)
        rows[begin : begin + step] = torch.from_numpy(data).reshape(-1, columns)

    step = max(1, _PIECE // columns)
    begins = range(0, count, step)
    if len(begins) == 1:
        piece(0)
    else:  # numpy's loops leave the interpreter to others
        with ThreadPoolExecutor() as pool:
            list(pool.map(piece, begins))
    return rows
