"""What a checkpoint says of how its weights are quantised."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4kernels.inputs.fields import Fields

_KEYS = ("quantization_config", "compression_config")
_METHODS = {"compression_config": "compressed-tensors"}
"""Of a record that does not say; one library has a key of its own."""
_OWN_FILES = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
"""Files beside the config that hold the record, where the config itself does not, and whose they
are if they do not say."""


ADVICE = (
    "take the unquantised checkpoint and run `l4k quantize` on it, or load it with --weights fp8 "
    "or int4"
)
"""To users of a quantisation that is not read."""


@dataclass(frozen=True)
class Quantization:
    """The quantisation's record in the config, or in a file of its own beside it.

    Attributes:
        method: `quant_method`, in lower case; empty if the record does not say.
        fields: the whole record.
        file: where it stands.
    """

    method: str
    fields: Fields
    file: Path

    @classmethod
    def of_folder(cls, folder: Path) -> "Quantization | None":
        """None: the checkpoint does not say that it is quantised."""
        file = folder / "config.json"
        top = Fields.of_file(file, optional=True)
        for part in (top, top.part("text_config")):
            for key in _KEYS:
                if part is not None and part.data.get(key):
                    fields = Fields(part.data[key], f"{file}: {key}")
                    return cls(_method(fields) or _METHODS.get(key, ""), fields, file)
        for name, method in _OWN_FILES.items():
            own = Fields.of_file(folder / name, optional=True)
            if own.data:
                record = own.data.get("quantization") or own.data
                fields = Fields(record, str(folder / name))
                return cls(_method(fields) or method, fields, folder / name)
        return None


def _method(fields: Fields) -> str:
    method = fields.data.get("quant_method")
    return method.lower() if isinstance(method, str) else ""


def unrecorded(content: dict[str, Any]) -> dict[str, Any]:
    """What config.json holds but the record.

    >>> unrecorded({"text_config": {"vocab_size": 9, "quantization_config": {}}})
    {'text_config': {'vocab_size': 9}}
    """
    return {
        key: unrecorded(value) if key == "text_config" and isinstance(value, dict) else value
        for key, value in content.items()
        if key not in _KEYS
    }
