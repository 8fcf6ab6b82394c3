"""Damage to any good checkpoint folder, of whatever format: the corpora C1 (files) and C2 (config).

`damages(good)` yields one change each; `Damaged.outcome` tries one and holds it to two seconds, 200
MB and nothing written.
"""

import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from l4kernels import Llama4
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.inputs.fields import ConfigError
from tests.support.hostile import INDEX, SECONDS, VALUES, Change, dumps, paths, put, time_limit

MEGABYTES = 200
RECORDS = ("quantization_config", "compression_config")
OWN_RECORDS = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
UNUSED = re.compile(r"input|k_scale|v_scale|g_idx|zero|qzeros|bias|weight_shape")
"""Of tensors whose values may well be zero or negative, or that a reader may leave alone."""


@dataclass(frozen=True)
class Damage:
    name: str
    change: Change
    refused: bool = True
    """Whether it must be refused; else it may load, too, if it does in time."""


def damages(good: Path, *, unused: re.Pattern = UNUSED) -> Iterator[Damage]:
    """Every kind of damage to a good folder; of tensors one for each last part of a name, such as
    `weight_scale`."""
    files = sorted(good.glob("*.safetensors"))
    for file in files[:1]:
        yield from _of_file(file)
    seen = set()
    for file in files:
        with safe_open(file, "pt") as opened:
            names = sorted(opened.keys())
        for name in names:
            kind = name.rpartition(".")[2], "norm" in name, "_proj" in name, "embed" in name
            if kind not in seen:
                seen.add(kind)
                yield from _of_tensor(file, name, unused)
    if (good / INDEX).exists():
        yield from _of_index(good)
    yield from _of_records(good)


def _of_file(file: Path) -> Iterator[Damage]:
    content, name = file.read_bytes(), file.name
    size = int.from_bytes(content[:8], "little")
    text, data = content[8 : 8 + size], content[8 + size :]
    header = json.loads(text)
    first, *_, last = (n for n in header if n != "__metadata__")

    def raw(text: bytes, data: bytes = data, length: int | None = None) -> Change:
        start = (len(text) if length is None else length).to_bytes(8, "little")
        return lambda folder: (folder / name).write_bytes(start + text + data) and None

    def cut(at: int) -> Change:
        return lambda folder: os.truncate(folder / name, at)

    for place, at in {
        "to nothing": 0, "in the length": 5, "in the header": 8 + size // 2,
        "behind the header": 8 + size, "in the middle": len(content) // 2,
        "by a byte": len(content) - 1,
    }.items():  # fmt: skip
        yield Damage(f"cut {place}", cut(at))
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    twice = json.dumps({first: header[first]}).encode()
    overlap = {**header, last: {**header[last], "data_offsets": header[first]["data_offsets"]}}
    lying = {**header, first: {**header[first], "shape": [1 << 40, 1 << 20]}}
    backwards = {**header, first: {**header[first], "data_offsets": [8, 0]}}

    def many(folder: Path) -> None:
        names = {f"n{i}": empty for i in range(1_000_000)}
        raw(json.dumps({**header, **names}).encode())(folder)

    yield Damage("a name twice", raw(text.rstrip()[:-1] + b", " + twice[1:]))
    yield Damage("overlapping", raw(json.dumps(overlap).encode()))
    yield Damage("a shape that overflows", raw(json.dumps(lying).encode()))
    yield Damage("offsets backwards", raw(json.dumps(backwards).encode()))
    yield Damage("a header of a terabyte", raw(text, length=1 << 40))
    yield Damage("a deep header", raw(b'{"a":' * 200_000))
    yield Damage("a million names", many)
    yield Damage("more data", raw(text, data + b"\0" * 8))
    for kind, target in {"parent": f"../{name}", "absolute": "/dev/zero", "loop": name}.items():
        yield Damage(f"a link: {kind}", _instead(name, lambda p, t=target: p.symlink_to(t)))
    yield Damage("a pipe", _instead(name, os.mkfifo))
    yield Damage("a folder", _instead(name, lambda p: p.mkdir()))


def _instead(name: str, make: Callable[[Path], object]) -> Change:
    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)  # where a link to the parent finds it
        make(folder / name)

    return change


def _of_tensor(file: Path, name: str, unused: re.Pattern) -> Iterator[Damage]:
    tensors, (module, _, leaf) = load_file(file), name.rpartition(".")
    data = tensors[name]
    beside = (t for n, t in tensors.items() if n.startswith(f"{module}."))
    integers = any(t.dtype == torch.int32 for t in beside)
    may_load = bool(unused.search(leaf))

    def with_tensor(new: Tensor | None, other: str = name) -> Change:
        def change(folder: Path) -> None:
            tensors = load_file(folder / file.name)
            tensors.pop(other, None)
            save_file(tensors | ({} if new is None else {other: new}), folder / file.name)
            if (folder / INDEX).exists():  # which is not to be what tells
                index = json.loads((folder / INDEX).read_text())
                index["weight_map"].pop(other, None)
                index["weight_map"] |= {} if new is None else {other: file.name}
                (folder / INDEX).write_text(json.dumps(index))

        return change

    yield Damage(f"{name} missing", with_tensor(None), not may_load)
    yield Damage(f"{name} once more", with_tensor(data.clone(), f"{name}_more"))
    more = data[:1].repeat(len(data) + 1, *[1] * (data.dim() - 1)) if data.dim() else data
    if data.dim():
        yield Damage(f"{name} too long", with_tensor(more), not may_load)
        yield Damage(f"{name} empty", with_tensor(data[:0].clone()), not may_load)
    yield Damage(f"{name} deeper", with_tensor(data[None, None].clone()), not may_load)
    other = torch.float32 if data.dtype == torch.int64 else torch.int64
    yield Damage(
        f"{name} of {other}", with_tensor(torch.zeros(data.shape, dtype=other)), not may_load
    )
    if not data.is_floating_point():
        return
    values = {"NaN": torch.nan}
    if data.dtype != torch.float8_e4m3fn:
        values["infinite"] = torch.inf
    if "scale" in leaf:
        # One in e4m3, of 16 weights, is zero where these are too small for it.
        own = {} if data.dtype == torch.float8_e4m3fn else {"zero": 0.0}
        # Those of integers may be below: -8 reaches further than 7.
        values |= own if integers else {**own, "negative": -1.0}
    for kind, value in values.items():
        changed = data.float().clone()
        changed.view(-1)[-1] = value
        yield Damage(f"{name} {kind}", with_tensor(changed.to(data.dtype)), not may_load)


def _of_index(good: Path) -> Iterator[Damage]:
    index = json.loads((good / INDEX).read_text())
    first, shard = next(iter(index["weight_map"].items()))

    def written(weight_map: object) -> Change:
        text = json.dumps({**index, "weight_map": weight_map})
        return lambda folder: (folder / INDEX).write_text(text) and None

    for place in (f"../{shard}", f"/dev/{shard}", "/dev/zero", "..", "", "config.json", "\0", 7):
        yield Damage(f"index: {place!r}", written({**index["weight_map"], first: place}))
    yield Damage(
        "index: a million", lambda f: written({f"n{i}": shard for i in range(1_000_000)})(f)
    )
    yield Damage("index: a name more", written({**index["weight_map"], "ghost": shard}))
    deep = '{"weight_map": ' + "[" * 200_000
    yield Damage("index: deep", lambda folder: (folder / INDEX).write_text(deep) and None)


def _of_records(good: Path) -> Iterator[Damage]:
    """What the config says of the quantisation, every field of it changed in every way."""
    for file in ("config.json", *OWN_RECORDS):
        if not (good / file).exists():
            continue
        content = json.loads((good / file).read_text())
        for path in paths(content):
            if file == "config.json" and path[0] not in RECORDS:
                continue  # `tests.support.hostile` has those
            for number, value in enumerate(VALUES):
                text = dumps(put(content, path, value))
                yield Damage(
                    f"{file} {path} {number}", functools.partial(_write, file, text), False
                )
            deep = {"a": {}}
            for _ in range(200):
                deep = {"a": deep}
            text = dumps(put(content, path, deep))
            yield Damage(f"{file} {path} nested", functools.partial(_write, file, text), False)


def _write(file: str, text: str, folder: Path) -> None:
    (folder / file).write_text(text)


class Damaged:
    """Tries damages in a folder of its own."""

    def __init__(self, good: Path, root: Path):
        self.good, self.root = good, root

    def outcome(self, damage: Damage) -> str:
        """ "loaded" or the error; raises for what takes too long or too much, or writes."""
        shutil.rmtree(self.root, ignore_errors=True)
        folder = self.root / "changed"
        shutil.copytree(self.good, folder)
        damage.change(folder)
        before, resident = _files(self.root), _watermark()
        result = "loaded"
        with time_limit(SECONDS):
            try:
                Llama4.from_pretrained(folder)
            except (ConfigError, CheckpointError) as error:
                result = str(error)
                assert len(result) < 2000 and result.isprintable(), (
                    f"{damage.name}: {result[:300]!r}"
                )
        used = _memory("VmHWM") - resident
        assert used < MEGABYTES << 20, f"{damage.name}: {used >> 20} MB"
        assert _files(self.root) == before, f"{damage.name}: something was written"
        assert not (damage.refused and result == "loaded"), damage.name
        return result


def _files(root: Path) -> set[tuple[str, int, int]]:
    found = (p for p in root.rglob("*"))
    return {(str(p), s.st_size, s.st_mtime_ns) for p in found for s in [p.lstat()]}


def _watermark() -> int:
    """Lets the high-water mark start over; the memory of now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"{name}:\s+(\d+) kB", status)
    assert match
    return int(match[1]) << 10
