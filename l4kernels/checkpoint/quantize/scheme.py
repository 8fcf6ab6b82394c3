"""Which weights are quantised, in which format, and how config.json says so."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from l4kernels.checkpoint.files.layout import Slot
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.checkpoint.formats.unquantised import Unquantised
from l4kernels.checkpoint.quantize.codecs import Codec, Fp8, Int4
from l4kernels.inputs.files import shown
from l4kernels.layers.weights import FORMATS

KV_SCHEME = {
    "num_bits": 8,
    "type": "float",
    "strategy": "tensor",
    "symmetric": True,
    "dynamic": False,
}
_CODECS: dict[str, Codec] = {"int4": Int4(), "fp8": Fp8()}
TARGETS = tuple(name for name in FORMATS if name != "bf16")
"""Formats that are written."""
_ATTENTION = r"re:.*\.self_attn\.[qkvo]_proj$"
_VISION = (r"re:.*vision_model\..*", r"re:.*multi_modal_projector\..*")
_KEPT = (r"re:.*lm_head$", r"re:.*\.router$")


@dataclass(frozen=True)
class Scheme:
    """A codec for attention and one for the feed-forward blocks; None: it stays as it is.

    >>> Scheme.of("fp8").record(vision=False)["ignore"]
    ['re:.*lm_head$', 're:.*\\\\.router$']
    """

    attention: Codec | None
    feed_forward: Codec

    @classmethod
    def of(cls, form: str, *, keep_attention: bool = False) -> "Scheme":
        """That of a format of `FORMATS`."""
        if form not in TARGETS:
            raise ValueError(
                f"expected format to be one of {', '.join(TARGETS)}, got {shown(form)}"
            )
        main = form.partition("+")[0]
        attention = _CODECS[FORMATS[form].attention or main]
        return cls(None if keep_attention else attention, _CODECS[main])

    def codec(self, slot: Slot) -> Codec | None:
        """For what fills a slot; None: it is written as it is."""
        kind = slot.block.rpartition(".")[2]
        if kind == "feed_forward":
            return self.feed_forward
        return self.attention if kind == "attention" else None

    def record(self, *, vision: bool, kv_cache: bool = False) -> dict[str, Any]:
        """`quantization_config`: all linear layers but those that `ignore` names."""
        ignore = [*_KEPT, *(_VISION if vision else ())]
        groups = [(self.feed_forward, ["Linear"])]
        if self.attention is None:
            ignore.append(_ATTENTION)
        elif self.attention is not self.feed_forward:
            groups.insert(0, (self.attention, [_ATTENTION]))  # the first that matches decides
        return {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": groups[0][0].name if len(groups) == 1 else "mixed-precision",
            "config_groups": {
                # Libraries of before there were several formats in a file know none of a group.
                f"group_{n}": {"targets": targets, **codec.scheme}
                | ({"format": codec.name} if len(groups) > 1 else {})
                for n, (codec, targets) in enumerate(groups)
            },
            "ignore": ignore,
            "kv_cache_scheme": KV_SCHEME if kv_cache else None,
        }

    def check(self, source: Unquantised) -> None:
        """Refuses a source that has nothing to quantise, or weights that a format cannot hold."""
        codecs = {name: self.codec(slot) for name, slot in source.slots.items()}
        chosen = {name: codec for name, codec in codecs.items() if codec is not None}
        folder = source.checkpoint.folder
        for name, codec in chosen.items():
            n, k = source.slots[name].rows_shape
            if k % codec.form.k_multiple or n % codec.form.n_multiple:
                raise CheckpointError(
                    f"{folder}: {name} is {n} by {k}; {codec.form.name} needs multiples of "
                    f"{codec.form.n_multiple} by {codec.form.k_multiple}"
                )
        if all(codec.form.holds(source.form(name)) for name, codec in chosen.items()):
            raise CheckpointError(
                f"{folder}: is already quantised to {self.feed_forward.form.name}; expected "
                f"weights in another format"
            )


def weight_names(name: str, slot: Slot, expert: int | None) -> dict[str, slice]:
    """Of a tensor of the layout, the weights that it is written as, one per expert, and which of
    its rows `[out, in]` each of them has.

    >>> slot = Slot((4, 16, 64), "layers.0.feed_forward.gate_up_proj", "gate_up", None, True)
    >>> weight_names("experts.gate_up_proj", slot, 3)["experts.3.up_proj.weight"]
    slice(32, 64, None)
    """
    if expert is None:
        return {name: slice(0, slot.rows_shape[0])}
    stem, _, kind = name.rpartition(".")
    if kind != "gate_up_proj":
        return {f"{stem}.{expert}.{kind}.weight": slice(0, slot.rows_shape[0])}
    half = slot.rows_shape[0] // 2
    return {
        f"{stem}.{expert}.gate_proj.weight": slice(0, half),
        f"{stem}.{expert}.up_proj.weight": slice(half, 2 * half),
    }


def kv_scale_names(slots: Mapping[str, Slot], layer: int) -> tuple[str, str]:
    """Where the scales of a layer's keys and values are stored."""
    mark = re.compile(rf"(.*layers\.{layer}\.self_attn\.)q_proj\.weight")
    prefix = next(found[1] for found in map(mark.fullmatch, slots) if found)
    return f"{prefix}k_scale", f"{prefix}v_scale"
