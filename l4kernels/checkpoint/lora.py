"""LoRA adapters of PEFT (`adapter_config.json`, `adapter_model.safetensors`), merged at load.

Each pair of an adapter adds `scaling * B @ A` to a weight. Nothing of an adapter is left out: what
has no place in the model, or is of a kind that is not a sum, is an error that names it.
"""

import functools
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from l4kernels.checkpoint.files.layout import Slot
from l4kernels.checkpoint.files.reader import Checkpoint, CheckpointError, short, some
from l4kernels.checkpoint.formats.unquantised import Unquantised
from l4kernels.inputs.fields import Fields
from l4kernels.inputs.files import shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FLOATS = ("BF16", "F16", "F32", "F64")
_OTHER_KINDS = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "velora_config", "kasa_config",
    "arrow_config", "monteclora_config", "alora_invocation_tokens", "layer_replication",
    "trainable_token_indices", "fan_in_fan_out",
)  # fmt: skip
"""Fields of a config that make an adapter more than sums of products."""
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that take something from the base's weights first."""
_PART = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)(?P<nested>(?:\.base_layer)*)\."
    r"(?:lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.default)?(?:\.weight)?|weight)"
)
_FUSED = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Edit:
    """What becomes of a tensor of the layout, or of one expert of it.

    Attributes:
        make: float32 `b [out, r]` times scaling, and `a [r, in]`; of a replacement the weight, and
            None.
    """

    expert: int | None
    make: Callable[[], tuple[Tensor, Tensor | None]]
    first: int = 0
    """Row of the tensor where it begins."""


class Adapter:
    """An adapter's folder, its config and headers checked."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: not a folder; expected a PEFT adapter's folder")
        self.file = self.folder / WEIGHTS
        if not (self.file.exists() or self.file.is_symlink()):
            pickled = self.folder / "adapter_model.bin"
            if pickled.exists():
                raise CheckpointError(
                    f"{pickled}: pickled files can run anything and are not read; expected "
                    f"{WEIGHTS}: save the adapter with safe_serialization=True"
                )
            raise CheckpointError(f"{self.folder}: found no {WEIGHTS}; expected a PEFT adapter")
        if not os.path.lexists(self.folder / CONFIG):
            raise CheckpointError(f"{self.folder}: found no {CONFIG}; expected a PEFT adapter")
        self.config = Fields.of_file(self.folder / CONFIG)
        self._check_config()
        self.checkpoint = Checkpoint(self.folder, WEIGHTS)
        for name, entry in self.checkpoint.entries.items():
            if entry.dtype not in _FLOATS:
                self.fail(f"expected {short(name)} to be one of {', '.join(_FLOATS)}", entry.dtype)

    def fail(self, message: str, got: object = None) -> NoReturn:
        raise CheckpointError(
            f"{self.file}: {message}" + ("" if got is None else f", got {shown(got)}")
        )

    def _check_config(self) -> None:
        config = self.config
        config.expect("peft_type", "LORA", None)
        config.expect("bias", "none", "none")
        for name in _OTHER_KINDS:
            if config.data.get(name):
                config.fail(
                    f"adapters with {name} cannot be merged here; supported: plain LoRA, rsLoRA, "
                    f"rank_pattern, alpha_pattern, target_parameters, modules_to_save. Merge it "
                    f"with peft's merge_and_unload and load the result"
                )
        start = config.data.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_CHANGED_BASES):
            config.fail(
                f"init_lora_weights = {shown(start)} changed the base's weights, too; save the "
                f"adapter with path_initial_model_for_weight_conversion"
            )
        self.rank = config.integer("r", 1, 1 << 16, 8)
        self.alpha = config.number("lora_alpha", -1e6, 1e6, 8)
        self.root = config.boolean("use_rslora", False)
        self.ranks = self._pattern("rank_pattern")
        self.alphas = self._pattern("alpha_pattern")

    def _pattern(self, name: str) -> dict[str, float]:
        part = Fields(self.config.data.get(name) or {}, f"{self.config.where}: {name}")
        for key in part.data:
            # PEFT has regular expressions here: one of a stranger can take for ever.
            if not re.fullmatch(r"\^?[\w.]{1,500}", key):
                part.fail(f"expected names of modules or their ends, got {shown(key)}")
        return {key: part.number(key, -1e6, 1e6) for key in part.data}

    def scaling(self, module: str, name: str, rank: int) -> float:
        """Of a pair of that rank for a module; checks the rank against the config."""
        told = _found(self.ranks, module, self.rank)
        if rank != told:
            self.fail(f"expected {short(name)} to have rank {told:g}, as {CONFIG} says", rank)
        return _found(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.root else rank)

    def read(self, name: str, part: Callable[[Tensor], Tensor] = lambda stored: stored) -> Tensor:
        """A tensor, or a part of it, in float32, finite."""
        data = part(self.checkpoint.read(name)).float()
        if not data.isfinite().all():
            self.fail(f"{short(name)} holds values that are NaN or infinite")
        return data


def _found(pattern: dict[str, float], module: str, default: float) -> float:
    """The value of the first name that a module has, or ends with."""
    for key, value in pattern.items():
        if module == key.removeprefix("^") or module.endswith(f".{key}"):
            return value
    return default


def merge(source: Unquantised, folder: str | Path) -> None:
    """Makes a checkpoint's tensors those that an adapter, added to them, gives.

    Raises:
        CheckpointError, ConfigError: an adapter that is none, or does not fit the model; no data
            of it were read.
    """
    adapter = Adapter(folder)
    edits, quantised = list(_edits(adapter, source)), 0
    for name, edit in edits:
        source.edits.setdefault(name, []).append(functools.partial(_apply, adapter, name, edit))
        quantised += source.quantization is not None and len(source.pieces[name]) > 1
    if not edits:
        adapter.fail("holds no tensors; expected lora_A and lora_B of the modules it changes")
    if quantised:
        source.notes.append(
            f"{adapter.folder} is merged into {quantised} quantised weights: they are dequantised, "
            f"added to and quantised again"
        )


def _apply(
    adapter: Adapter, name: str, edit: Edit, data: Tensor, expert: int | None, dtype: torch.dtype
) -> Tensor:
    """`data` is rows first, floats."""
    if edit.expert is not None and expert != edit.expert:
        return data
    left, right = edit.make()
    if right is None:
        return left
    result = data.to(dtype) if data.dtype != dtype else data.clone()
    rows = result[edit.first : edit.first + len(left)]
    for own, part in zip(rows.split(1024), left.split(1024), strict=True):
        own.copy_(torch.addmm(own.float(), part, right))  # rounded once
        if not torch.stack(own.aminmax()).isfinite().all():
            adapter.fail(
                f"added to {name} it gives values too large for {str(dtype).removeprefix('torch.')}"
            )
    return result


def _edits(adapter: Adapter, source: Unquantised) -> Iterator[tuple[str, Edit]]:
    places = _Places(adapter, source)
    pairs: dict[tuple[str, bool], dict[str, str]] = {}
    unknown: list[str] = []
    for name in sorted(adapter.checkpoint.entries):
        match = _PART.fullmatch(name)
        if match is None:
            adapter.fail(f"{short(name)} is no part of LoRA that can be merged")
        module, nested = match["module"], match["nested"]
        if not places.knows(module):
            unknown.append(module)
        elif match["side"] is None:
            yield places.replacement(name, module, nested=bool(nested))
        else:
            pair = pairs.setdefault((module + nested, bool(match["embedding"])), {})
            pair[match["side"]] = name
    if unknown:
        unknown = sorted({*unknown})
        adapter.fail(
            f"{len(unknown)} modules that the adapter changes are not in the model: "
            f"{some(map(short, unknown))}"
        )
    for (module, embedding), pair in pairs.items():
        if len(pair) != 2:
            adapter.fail(f"{short(next(iter(pair.values())))} has no other half, lora_A and lora_B")
        yield from places.product(module, pair["A"], pair["B"], embedding=embedding)


class _Places:
    """Which tensors of a checkpoint's layout the modules of an adapter are."""

    def __init__(self, adapter: Adapter, source: Unquantised):
        self.adapter, self.slots = adapter, source.slots
        self.tied = source.config.tie_word_embeddings
        self.experts = source.config.num_local_experts
        self.by_core = {_core(name.removesuffix(".weight")): name for name in self.slots}
        self.saved = adapter.config.data.get("modules_to_save") or ()
        if not isinstance(self.saved, list | tuple):
            adapter.config.fail(f"expected modules_to_save to be a list, got {shown(self.saved)}")

    def knows(self, module: str) -> bool:
        core = _core(module)
        return core in self.by_core or self._experts(core) or self._expert(core) is not None

    def _experts(self, core: str) -> bool:
        """Whether it is the module of all experts of a layer."""
        names = f"{core}.down_proj", f"{core}.0.down_proj"
        return core.endswith(".experts") and any(name in self.by_core for name in names)

    def _expert(self, core: str) -> tuple[str, int, str] | None:
        """The fused tensor, expert and projection of a module that the checkpoint has fused."""
        match = re.fullmatch(r"(.+\.experts)\.(\d{1,5})\.(gate|up|down)_proj", core)
        if match is None or int(match[2]) >= self.experts:
            return None
        fused = f"{match[1]}.{'down' if match[3] == 'down' else 'gate_up'}_proj"
        return (fused, int(match[2]), match[3]) if fused in self.by_core else None

    def replacement(self, name: str, module: str, *, nested: bool) -> tuple[str, Edit]:
        """Of a module that was trained whole, or an embedding that is saved beside its pair."""
        core, shape = _core(module), self.adapter.checkpoint.entries[name].shape
        saved = ("embed_tokens", "lm_head", *map(str, self.saved))  # ends of names, as in PEFT
        if core not in self.by_core or not (nested or core.endswith(saved)):
            self.adapter.fail(
                f"{short(name)} replaces a weight, and {CONFIG} has no such module in "
                f"modules_to_save"
            )
        self._untied(core, name)
        target = self.by_core[core]
        if shape != self.slots[target].shape:
            self._misshapen(name, self.slots[target].shape)
        return target, Edit(None, lambda: (self.adapter.read(name), None))

    def product(
        self, module: str, a: str, b: str, *, embedding: bool
    ) -> Iterator[tuple[str, Edit]]:
        core = _core(module.replace(".base_layer", ""))
        self._untied(core, a)
        if self._experts(core):
            yield from self._of_experts(core, module, a, b)
            return
        expert = self._expert(core) if core not in self.by_core else None
        target = self.by_core[expert[0] if expert else core]
        n, k = self._rows(self.slots[target])
        first = 0
        if expert and expert[2] != "down":
            n //= 2
            first = n if expert[2] == "up" else 0
        if embedding:  # its product is `[in, out]` of a lookup
            a, b = b, a
        rank = self.adapter.checkpoint.entries[b if embedding else a].shape[:1] or (0,)
        scale = self.adapter.scaling(_plain(module), a, rank[0])
        turned = [(k, rank[0]), (rank[0], n)] if embedding else [(rank[0], k), (n, rank[0])]
        for name, shape in zip((a, b), turned, strict=True):
            if self.adapter.checkpoint.entries[name].shape != shape:
                self._misshapen(name, shape)

        def make() -> tuple[Tensor, Tensor | None]:
            right, left = self.adapter.read(a), self.adapter.read(b)
            if embedding:
                left, right = left.t(), right.t()
            return left * scale, right

        yield target, Edit(expert[1] if expert else None, make, first)

    def _of_experts(self, core: str, module: str, a: str, b: str) -> Iterator[tuple[str, Edit]]:
        """The pairs that `target_parameters` makes, of all experts of a layer in one.

        A stack is `[E, in, out]`. A holds `[E * r, out]`, expert by expert, and B `[in, r * E]`,
        rank by rank: PEFT takes the last dimension of such a parameter for the inputs.
        """
        entries, experts = self.adapter.checkpoint.entries, self.experts
        stack, wide = entries[a].shape, entries[b].shape
        hidden, width = self._widths(core)
        shapes = {"gate_up_proj": (2 * width, hidden), "down_proj": (hidden, width)}
        sizes = (stack[1:], wide[:1])
        kind = next((p for p in _FUSED if sizes == ((shapes[p][0],), (shapes[p][1],))), None)
        rank, rest = divmod(stack[0] if stack else 0, experts)
        if kind is None or rest or len(stack) != 2 or wide[1:] != stack[:1]:
            self.adapter.fail(
                f"expected {short(a)} and lora_B to be [{experts} * r, {2 * width}] and "
                f"[{hidden}, r * {experts}] of gate_up_proj, or [{experts} * r, {hidden}] and "
                f"[{width}, r * {experts}] of down_proj",
                [list(stack), list(wide)],
            )
        scale = self.adapter.scaling(f"{_plain(module)}.{kind}", a, rank)

        def make(expert: int, rows: slice) -> tuple[Tensor, Tensor | None]:
            # Of a mapped file: what belongs to other experts is not read.
            left = self.adapter.read(a, lambda t: t.view(experts, rank, -1)[expert, :, rows])
            right = self.adapter.read(b, lambda t: t.view(-1, rank, experts)[:, :, expert])
            return left.t() * scale, right.t()

        for expert in range(experts):
            if f"{core}.{kind}" in self.by_core:
                of_all = functools.partial(make, expert, slice(None))
                yield self.by_core[f"{core}.{kind}"], Edit(expert, of_all)
                continue
            halves = {"down_proj": slice(None)}
            if kind == "gate_up_proj":
                halves = {"gate_proj": slice(0, width), "up_proj": slice(width, None)}
            for name, rows in halves.items():
                target = self.by_core[f"{core}.{expert}.{name}"]
                yield target, Edit(None, functools.partial(make, expert, rows))

    def _widths(self, core: str) -> tuple[int, int]:
        """Hidden and inner size of a layer's experts."""
        fused = self.by_core.get(f"{core}.down_proj") or self.by_core[f"{core}.0.down_proj"]
        return self._rows(self.slots[fused])

    def _rows(self, slot: Slot) -> tuple[int, int]:
        if len(slot.shape) < 2:
            self.adapter.fail(f"expected weights of products, got one for {slot.target}")
        n, k = slot.rows_shape
        return n, k

    def _untied(self, core: str, name: str) -> None:
        if self.tied and core in ("embed_tokens", "lm_head"):
            self.adapter.fail(
                f"{short(name)} changes one of two weights that the model ties; merge it with "
                f"peft's merge_and_unload and load the result"
            )

    def _misshapen(self, name: str, shape: tuple[int, ...]) -> None:
        self.adapter.fail(
            f"expected {short(name)} to be {list(shape)}",
            list(self.adapter.checkpoint.entries[name].shape),
        )


def _core(module: str) -> str:
    """Without what says which model a module is in: transformers' classes differ there."""
    while module.startswith(("model.", "language_model.")):
        module = module.partition(".")[2]
    return module


def _plain(module: str) -> str:
    return module.replace(".base_layer", "")
