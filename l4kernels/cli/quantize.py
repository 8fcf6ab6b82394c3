"""`l4k quantize`."""

import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4kernels import demo
from l4kernels.checkpoint.choice import stored_formats
from l4kernels.checkpoint.files.writer import check_free
from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.checkpoint.formats.unquantised import Unquantised
from l4kernels.checkpoint.quantize.run import Job, Written, quantize
from l4kernels.checkpoint.quantize.scheme import Scheme
from l4kernels.cli.loading import check_options, load_options
from l4kernels.cli.output import facts, line, print_json
from l4kernels.cli.progress import loading_bar
from l4kernels.engine.calibrate import Statistics, calibrate
from l4kernels.engine.llama4 import Llama4
from l4kernels.engine.perplexity import Score, score
from l4kernels.inputs.files import read_text, shown
from l4kernels.model.config import Llama4Config
from l4kernels.planning import cpu
from l4kernels.prompt.tokenizer import Tokenizer

STATISTICS = "activation_stats.json"
NOTE = (
    "Largest magnitudes of the inputs of linear layers on the calibration text, by the layers' "
    "names in l4kernels. No kernel reads them."
)
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_FAILED = 1


@dataclass(frozen=True)
class Request:
    model: Path
    out: Path
    form: str
    keep_attention: bool = False
    shard_size: str = "5GB"
    calibrate: Path | None = None
    verify: bool = False
    text: Path | None = None
    device: str | None = None


def run(request: Request, *, as_json: bool) -> int:
    """Returns the exit code: 1 where a perplexity is not finite."""
    scheme = Scheme.of(request.form, keep_attention=request.keep_attention)
    shard_bytes = parse_bytes(request.shard_size)
    if not request.model.is_dir():
        raise FileNotFoundError(f"{request.model}: no such checkpoint folder")
    if request.text is not None and not request.verify:
        raise ValueError("--text is what --verify measures on; give both, or neither")
    check_options(request.device, None, None, "auto")
    texts = _texts(request) if request.verify else []
    config = Llama4Config.from_pretrained(request.model)
    source = open_checkpoint(request.model, config)
    scheme.check(source)
    check_free(request.out)
    started = time.perf_counter()
    found = None if request.calibrate is None else _statistics(request, request.calibrate, source)
    calibrated = time.perf_counter()
    job = Job(source, scheme, found.kv_scales() if found else {}, _files(found))
    try:
        with cpu.threads(cpu.usable_cores()), loading_bar("Quantising") as progress:
            written = quantize(job, request.out, shard_bytes=shard_bytes, progress=progress)
    except KeyboardInterrupt:
        print("l4k: the same command goes on after the last finished file", file=sys.stderr)
        raise
    seconds = time.perf_counter() - calibrated
    result = {
        "format": request.form,
        "out": str(request.out),
        "matrices": written.matrices,
        "weights": written.weights,
        "tensors": written.tensors,
        "bytes": written.bytes,
        "source_bytes": written.source_bytes,
        "seconds": seconds,
        "calibration_s": calibrated - started,
    }
    if not as_json:
        _print_written(request, scheme, written, seconds, found, vision=config.vision is not None)
    if not request.verify:
        if as_json:
            print_json(result)
        return 0
    before, after = (_score(request, f, texts) for f in (request.model, request.out))
    if as_json:
        print_json(result | {"perplexity": _compared(before, after)})
    else:
        line(
            f"perplexity {before.perplexity:.4f} -> {after.perplexity:.4f} "
            f"({after.perplexity / before.perplexity - 1:+.2%}), bits per byte "
            f"{before.bits_per_byte:.4f} -> {after.bits_per_byte:.4f}, {before.tokens:,} tokens"
        )
    good = all(math.isfinite(s.perplexity) for s in (before, after))
    return 0 if good else _FAILED


def parse_bytes(text: str) -> int:
    """`5GB`, `500MB` (powers of ten) or a number of bytes.

    >>> parse_bytes("5GB"), parse_bytes("1.5 mb"), parse_bytes("4096")
    (5000000000, 1500000, 4096)
    """
    unit = next((u for u in _UNITS if text.upper().endswith(u)), "")
    digits = text[: len(text) - len(unit)].strip()
    whole = digits.replace(".", "", 1)
    if not (whole.isascii() and whole.isdigit() and len(whole) <= 12):
        raise ValueError(f"expected a size such as 5GB or 500MB, got {shown(text)}")
    size = int(float(digits) * _UNITS.get(unit, 1))
    if size < 1:
        raise ValueError(f"expected a size above 0, got {shown(text)}")
    return size


def _texts(request: Request) -> list[str]:
    """What perplexity is measured on."""
    if request.text is not None:
        return [_text(request.text)]
    if request.model.resolve() == demo.CHECKPOINT.resolve():
        return demo.held_out_chapters()
    raise ValueError(
        "--verify needs a text to measure perplexity on: name a file with --text (only the shipped "
        "checkpoint has one of its own)"
    )


def _text(file: Path) -> str:
    """Before any work is done for it."""
    if not file.exists():
        raise FileNotFoundError(f"{file}: not found; expected a text file")
    content = read_text(file)
    if not content:
        raise ValueError(f"{file}: is empty; expected a text")
    return content


def _statistics(request: Request, text: Path, source: Unquantised) -> Statistics:
    content, tokenizer = _text(text), Tokenizer(request.model)
    return calibrate(_loaded(request, source), tokenizer, content)


def _loaded(request: Request, source: Unquantised) -> Llama4:
    stored = stored_formats(source).values()
    options = load_options(request.device, None, None, stored=stored) | {"kv_dtype": None}
    with cpu.threads(cpu.usable_cores()), loading_bar() as progress:
        return Llama4.from_checkpoint(source, progress=progress, **options)


def _score(request: Request, folder: Path, texts: list[str]) -> Score:
    """Of the checkpoint as it is stored; the model is gone when this returns."""
    source = open_checkpoint(folder, Llama4Config.from_pretrained(folder))
    model, tokenizer = _loaded(request, source), Tokenizer(folder)
    with cpu.threads(cpu.threads_for(source.checkpoint.size, demo.BATCH * demo.WINDOW)):
        return score(model, tokenizer, texts, demo.WINDOW, demo.BATCH)


def _compared(before: Score, after: Score) -> dict[str, Any]:
    return {
        "tokens": before.tokens,
        "source": before.perplexity,
        "result": after.perplexity,
        "source_bits_per_byte": before.bits_per_byte,
        "result_bits_per_byte": after.bits_per_byte,
    }


def _files(found: Statistics | None) -> Mapping[str, str]:
    if found is None:
        return {}
    content = {"note": NOTE, "tokens": found.tokens, "absmax": found.inputs}
    return {STATISTICS: json.dumps(content, indent=1) + "\n"}


def _print_written(
    request: Request,
    scheme: Scheme,
    written: Written,
    seconds: float,
    found: Statistics | None,
    *,
    vision: bool,
) -> None:
    kept = ["attention"] if scheme.attention is None else []
    kept += ["lm_head", "embedding", "router", "norms", *(["vision"] if vision else [])]
    rows = [
        ("written", f"{request.out}, compressed-tensors {request.form}"),
        (
            "size",
            f"{written.source_bytes / 1e6:,.1f} -> {written.bytes / 1e6:,.1f} MB "
            f"({written.bytes / written.source_bytes:.1%})",
        ),
        ("quantised", f"{written.matrices} matrices, {written.weights:,} weights"),
        ("as before", ", ".join(kept)),
        ("time", f"{seconds:.1f} s"),
    ]
    if found is not None:
        what = f"of {len(found.keys)} layers, from {found.tokens:,} tokens"
        rows.append(("KV scales", f"{what}; {STATISTICS} is for other programs"))
    facts(rows)
