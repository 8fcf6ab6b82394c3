"""Reads a checkpoint a tensor at a time, and writes it quantised."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from l4kernels.checkpoint.files.planned import Planned
from l4kernels.checkpoint.files.quantization import unrecorded
from l4kernels.checkpoint.files.reader import CheckpointError, Weight
from l4kernels.checkpoint.files.writer import SHARD_BYTES, CheckpointWriter
from l4kernels.checkpoint.formats.unquantised import KvScales, Unquantised
from l4kernels.checkpoint.progress import Progress
from l4kernels.checkpoint.quantize.scheme import Scheme, kv_scale_names, weight_names
from l4kernels.inputs.fields import MAX_CONFIG_BYTES
from l4kernels.inputs.files import read_object
from l4kernels.layers.weights.codes import Codes

_COPIED = re.compile(
    r"(tokenizer|chat_template|special_tokens_map|added_tokens|vocab|generation_config|processor|"
    r"preprocessor|video_preprocessor|image_processor)[\w-]*\.(json|jinja|model|txt)"
    r"|additional_chat_templates/[\w-]+\.jinja|(LICENSE|NOTICE|USE_POLICY)[\w.-]*"
)
_FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float32}


@dataclass(frozen=True)
class Written:
    """What became of a checkpoint."""

    matrices: int
    """That were quantised, those of an earlier run included."""
    weights: int
    """In them."""
    tensors: int
    bytes: int
    source_bytes: int


@dataclass(frozen=True)
class Job:
    """What is to be done, decided by headers alone.

    Args:
        kv_scales: of keys and values, by layer; without them those of the source, if it has some.
        files: others to write beside the weights, by their names.
    """

    source: Unquantised
    scheme: Scheme
    kv_scales: KvScales = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def outputs(self, name: str) -> Iterator[tuple[str, Planned]]:
        """The stored tensors that a tensor of the layout becomes."""
        slot = self.source.slots[name]
        codec = self.scheme.codec(slot)
        if codec is None:
            yield name, Planned(slot.shape, self._float_type(name))
            return
        for expert in range(slot.shape[0]) if slot.transposed else (None,):
            for weight, rows in weight_names(name, slot, expert).items():
                shape = rows.stop - rows.start, slot.rows_shape[1]
                yield from codec.planned(weight, shape).items()

    def tensors(self, name: str, expert: int | None, data: Weight) -> Iterator[tuple[str, Tensor]]:
        """What is in them, of one expert of a stack."""
        slot = self.source.slots[name]
        codec = self.scheme.codec(slot)
        if codec is None:
            floats = data.dequantized() if isinstance(data, Codes) else data
            yield name, floats.to(self._float_type(name))
            return
        if isinstance(data, Tensor):
            data = data.contiguous()  # torch turns a whole matrix three times faster than its parts
        for weight, rows in weight_names(name, slot, expert).items():
            part = data.rows(rows.start, rows.stop) if isinstance(data, Codes) else data[rows]
            yield from codec.encoded(weight, part)

    def order(self) -> list[str]:
        return self.source.checkpoint.order(self.source.pieces)

    def plan(self) -> dict[str, Planned]:
        plan = {n: planned for name in self.order() for n, planned in self.outputs(name)}
        # Behind all others: four bytes would put those that come after them out of place.
        return plan | {name: Planned((1,), torch.float32) for name in self.scales()}

    def scales(self) -> dict[str, float]:
        """Of keys and values, by their names."""
        slots, found = self.source.slots, self.kv_scales or self.source.kv_scales
        names = {layer: kv_scale_names(slots, layer) for layer in found}
        return {n: s for layer in found for n, s in zip(names[layer], found[layer], strict=True)}

    def config(self) -> str:
        """config.json, with the record of how it is quantised."""
        file = self.source.checkpoint.folder / "config.json"
        content = unrecorded(read_object(file, CheckpointError, MAX_CONFIG_BYTES))
        vision = self.source.config.vision is not None
        record = self.scheme.record(vision=vision, kv_cache=bool(self.scales()))
        return json.dumps(content | {"quantization_config": record}, indent=2) + "\n"

    def copied(self) -> dict[str, Path]:
        """Tokenizer, templates and their like, by their names in the folder."""
        checkpoint = self.source.checkpoint
        found = sorted([*checkpoint.folder.iterdir(), *checkpoint.folder.glob("*/*.jinja")])
        names = (file.relative_to(checkpoint.folder).as_posix() for file in found)
        return {name: checkpoint.inside(name) for name in names if _COPIED.fullmatch(name)}

    def identity(self) -> str:
        """Two runs of one identity write the same bytes."""
        checkpoint = self.source.checkpoint
        stats = [(file.name, file.stat()) for file in checkpoint.files]
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        folder, record = str(checkpoint.folder.resolve()), self.source.quantization
        read_as = None if record is None else [record.method, dict(record.fields.data)]
        return json.dumps([folder, files, read_as, self.config(), self.scales()])

    def _float_type(self, name: str) -> torch.dtype:
        """Of a tensor that stays as it is; bfloat16 where that was in codes."""
        first = next(iter(self.source.pieces[name]))
        return _FLOATS.get(self.source.checkpoint.entries[first].dtype, torch.bfloat16)


def quantize(
    job: Job, out: str | Path, *, shard_bytes: int = SHARD_BYTES, progress: Progress | None = None
) -> Written:
    """Writes the checkpoint folder `out`, a tensor in memory at a time.

    A run that is ended leaves finished shards in `out`.partial; the same call goes on from there.

    Raises:
        CheckpointError: the source cannot be quantised so, or `out` cannot be written.
    """
    source = job.source
    job.scheme.check(source)
    plan, files = job.plan(), job.copied()
    with CheckpointWriter(
        out, plan, shard_bytes=shard_bytes, identity=job.identity(), progress=progress
    ) as writer:
        missing = [
            name for name in job.order() if not all(writer.has(n) for n, _ in job.outputs(name))
        ]
        pieces = {name: source.pieces[name] for name in missing}
        for name, expert, data in source.checkpoint.tensors(pieces, source.decode, torch.float32):
            for stored, value in job.tensors(name, expert, data):
                if not writer.has(stored):
                    writer.write(stored, value)
            del data  # the last reference to a mapped file would keep it beside the next one
        for stored, scale in job.scales().items():
            if not writer.has(stored):
                writer.write(stored, torch.tensor([scale], dtype=torch.float32))
        for name, file in files.items():
            writer.add(name, file)
        writer.add("config.json", job.config())
        for name, text in job.files.items():
            writer.add(name, text)
        writer.finish()
    quantised = [slot for slot in source.slots.values() if job.scheme.codec(slot)]
    return Written(
        sum(name.endswith("weight_scale") for name in plan),
        sum(math.prod(slot.shape) for slot in quantised),
        len(plan),
        writer.total,
        source.checkpoint.size,
    )
