"""How a checkpoint wants to be sampled: `generation_config.json` beside `config.json`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4kernels.model.config import Llama4Config


@dataclass(frozen=True)
class GenerationDefaults:
    """Sampling defaults and end tokens of a checkpoint; greedy where it says nothing."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()

    @classmethod
    def from_pretrained(cls, path: str | Path, config: Llama4Config) -> "GenerationDefaults":
        """The end tokens are those of either file."""
        file = Path(path) / "generation_config.json"
        if not file.is_file():
            return cls(stop_ids=tuple(sorted(set(config.eos_token_ids))))
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            sampled = bool(content.get("do_sample", False))
            ends = content.get("eos_token_id") or []
            ends = [ends] if isinstance(ends, int) else ends
            return cls(
                temperature=_number(content, "temperature", 1.0) if sampled else 0.0,
                top_p=_number(content, "top_p", 1.0) if sampled else 1.0,
                top_k=int(_number(content, "top_k", 0)) if sampled else 0,
                stop_ids=tuple(sorted({*config.eos_token_ids, *(int(i) for i in ends)})),
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: not a usable generation config ({error})") from None


def _number(content: dict[str, Any], name: str, default: float) -> float:
    value = content.get(name)
    return float(default if value is None else value)
