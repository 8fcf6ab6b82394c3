"""What the verbs that load a model share: its options, its size, and the order of the steps."""

import contextlib
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from l4kernels.checkpoint.choice import stored_formats
from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.cli.progress import loading_bar
from l4kernels.engine.engine import Engine
from l4kernels.engine.llama4 import Llama4
from l4kernels.engine.request import Request
from l4kernels.engine.sampling import Sampling
from l4kernels.inputs.forms import convert_hint
from l4kernels.layers.options import DTYPES, find_device
from l4kernels.layers.weights import FORMATS, WeightFormat
from l4kernels.model.config import Llama4Config
from l4kernels.planning import cpu
from l4kernels.planning.machine import gpu_problem


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A checkpoint, and how its model is held: options of all verbs that load one."""

    model: Path
    weights: str | None = None
    dtype: str | None = None
    device: str | None = None
    kv_dtype: str = "auto"
    reference: bool = False
    lora: tuple[Path, ...] = ()

    def config(self) -> Llama4Config:
        """The checkpoint's, after a look at the options that need nothing of it."""
        check_options(self.device, self.dtype, self.weights, self.kv_dtype)
        if not self.model.is_dir():
            hint = convert_hint(self.model)
            raise FileNotFoundError(f"{self.model}: no such checkpoint folder{hint}")
        return Llama4Config.from_pretrained(self.model)


@dataclass(frozen=True, kw_only=True)
class ModelRequest(ModelOptions):
    """The options of verbs that a prompt is given to."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()

    def config(self) -> Llama4Config:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"expected --max-new-tokens >= 1, got {self.max_new_tokens}")
        return super().config()

    def sampling(self) -> Sampling:
        """What the request leaves open, the checkpoint decides."""
        asked = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        asked = {name: value for name, value in asked.items() if value is not None}
        return replace(Sampling.from_pretrained(self.model), **asked, seed=self.seed)


class Loader:
    """A request's checkpoint: headers are read here, weights by `loaded`."""

    def __init__(self, request: ModelOptions, config: Llama4Config):
        self.request = request
        self.source = open_checkpoint(request.model, config)
        self.options = load_options(
            request.device,
            request.dtype,
            request.weights,
            request.kv_dtype,
            stored=stored_formats(self.source).values(),
            reference=request.reference,
        )

    @contextlib.contextmanager
    def loaded(self) -> Iterator[Llama4]:
        """The model; in the block the CPU has the threads that suit its size."""
        request = self.request
        with cpu.threads(cpu.threads_for(checkpoint_bytes(request.model))):
            with loading_bar() as progress:
                model = Llama4.from_checkpoint(
                    self.source, progress=progress, lora=request.lora, **self.options
                )
            yield model


def warm_up(engine: Engine) -> None:
    """Has what is made at first use made now; a step is captured when it comes a second time."""
    first = [engine.model.config.bos_token_id or 0]
    engine.add(Request(first, 4, stop_ids=())).result()


def checkpoint_bytes(folder: Path) -> int:
    """Of the weights' files, before they are opened."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def check_options(
    device: str | None, dtype: str | None, weights: str | None, kv_dtype: str
) -> None:
    """Refuses what no checkpoint can be loaded with, before one is looked at."""
    for option, value, known in (
        ("--dtype", dtype, tuple(DTYPES)),
        ("--weights", weights, tuple(FORMATS)),
        ("--kv-dtype", kv_dtype, ("auto", "fp8")),
    ):
        if value is not None and value not in known:
            raise ValueError(f"expected {option} to be one of {', '.join(known)}, got {value!r}")
    find_device(device or "cpu")


def load_options(
    device: str | None,
    dtype: str | None,
    weights: str | None,
    kv_dtype: str = "auto",
    *,
    stored: Collection[WeightFormat] = (),
    reference: bool = False,
) -> dict[str, Any]:
    """Arguments of `Llama4.from_checkpoint` from the command line's spellings; `stored` are the
    formats that the checkpoint holds, for a model that is as they are."""
    check_options(device, dtype, weights, kv_dtype)
    forms = list(stored) if weights is None else [FORMATS[weights]]
    target = find_device(device or _default_device(forms, reference))
    dtype = dtype or ("bfloat16" if target.type == "cuda" else "float32")
    by_default = target.type == "cuda" and any(form.fp8_cache for form in forms)
    small = kv_dtype == "fp8" or by_default
    return {
        "device": target,
        "dtype": DTYPES[dtype],
        "weights": weights,
        "kv_dtype": "fp8" if small else None,
    }


def _default_device(forms: Collection[WeightFormat], reference: bool) -> str:
    """The GPU if a whole model can run there; an idle GPU is never passed over in silence."""
    if not torch.cuda.is_available():
        return "cpu"
    problem = None if reference else gpu_problem(*forms)
    if problem is None:
        return "cuda"
    print(f"l4k: running on the CPU: {problem}", file=sys.stderr)
    return "cpu"
