"""`l4k verify`: whether a checkpoint is whole, and may be relied on."""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from l4kernels.checkpoint.files.reader import CheckpointError, Read, Weight, some
from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.checkpoint.formats.unquantised import Unquantised
from l4kernels.checkpoint.progress import Progress
from l4kernels.cli.output import facts, line, print_json, styled
from l4kernels.cli.progress import loading_bar
from l4kernels.inputs.files import open_regular, read_text, shown
from l4kernels.model.config import Llama4Config
from l4kernels.planning import cpu
from l4kernels.prompt.chat import Prompter, user_message
from l4kernels.prompt.chat_template import read_templates
from l4kernels.prompt.tokenizer import Tokenizer

SUMS = "SHA256SUMS"
DAMAGED = 1
_MOST = 20
"""Tensors that are named; of a file that lost a page there may be thousands."""
_PART = 1 << 22
_SUM = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
_PLAIN = {r"\\": "\\", r"\n": "\n", r"\r": "\r"}
_ESCAPED = re.compile(r"\\[\\nr]")
"""What `sha256sum` spells so, where a line begins with a backslash."""


@dataclass
class Report:
    """What was checked, and what is wrong with it.

    Attributes:
        checks: by what was looked at: "ok", or what is to be said of it.
        problems: one line each.
        files: by name: bytes and SHA-256.
    """

    model: str
    checks: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @contextlib.contextmanager
    def checking(self, name: str) -> Iterator[None]:
        """Notes errors of the block, and that it was gone through."""
        before = len(self.problems)
        try:
            yield
        except (ValueError, OSError) as error:
            self.problems.append(str(error))
        found = len(self.problems) - before
        if found or name not in self.checks:
            self.checks[name] = f"{found} problem{'s' * (found > 1)}" if found else "ok"


def run(
    model: Path, *, against: Path | None = None, write: Path | None = None, as_json: bool
) -> int:
    """Returns the exit code: 0 if all is well, 1 if not."""
    if not model.is_dir():
        raise FileNotFoundError(f"{model}: no such checkpoint folder")
    expected = None if against is None else read_sums(against)
    started = time.perf_counter()
    report = Report(str(model))
    with cpu.threads(cpu.usable_cores()):
        _check(report, model, expected)
    report.seconds = time.perf_counter() - started
    if write is not None:
        write_sums(write, {name: of["sha256"] for name, of in report.files.items()})
    if as_json:
        print_json({"ok": not report.problems, **asdict(report)})
    else:
        _print(report)
    return DAMAGED if report.problems else 0


def read_sums(file: Path) -> dict[str, str]:
    """The SHA-256 of each file in a list as `sha256sum` writes it."""
    found: dict[str, str] = {}
    for number, row in enumerate(read_text(file).removesuffix("\n").split("\n"), 1):
        match = _SUM.fullmatch(row.rstrip("\r"))
        if match is None:
            raise ValueError(
                f"{file}: line {number}: expected a SHA-256 and a file's name, got {shown(row)}"
            )
        name = _ESCAPED.sub(lambda of: _PLAIN[of[0]], match[3]) if match[1] else match[3]
        found[name.removeprefix("./")] = match[2].lower()
    return found


def write_sums(file: Path, sums: dict[str, str]) -> None:
    """Writes the list as `sha256sum` does: as a whole, or not at all."""
    rows = []
    for name, digest in sums.items():
        if name.encode(errors="ignore").decode() != name:  # bytes that are no text
            raise ValueError(f"{file}: cannot name {shown(name)}, which is not UTF-8; rename it")
        spelled = name.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
        rows.append(f"{'' if spelled == name else chr(92)}{digest}  {spelled}\n")
    data = "".join(rows).encode()
    try:
        if os.path.lexists(file) and not file.is_file():
            file.write_bytes(data)  # a device, or a pipe
            return
        target = Path(os.path.realpath(file))
        new = target.with_name(f".{target.name}.partial")
        try:
            new.write_bytes(data)
            os.replace(new, target)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"{file}: cannot be written ({error.strerror or error})") from None


def _check(report: Report, model: Path, expected: dict[str, str] | None) -> None:
    config, source = None, None
    with report.checking("config"):
        config = Llama4Config.from_pretrained(model)
    if config is not None:
        with report.checking("structure"):
            source = open_checkpoint(model, config)
    names = _files(model)
    # Each file is hashed while its tensors are looked at: the disk is read once.
    with ThreadPoolExecutor(1) as pool:
        hashed = pool.map(lambda name: _digest(model / name), names)
        if source is None:
            report.checks["tensors"] = "not looked at"
        else:
            with report.checking("tensors"), loading_bar("Checking") as progress:
                _check_tensors(report, source, progress)
            with report.checking("tied weights"):
                _check_tied(report, source)
        with report.checking("files"):
            for name, (size, digest) in zip(names, hashed, strict=True):
                report.files[name] = {"bytes": size, "sha256": digest}
            read = () if source is None else source.checkpoint.files
            unread = [f.name for f in sorted(model.glob("*.safetensors")) if f not in read]
            if source is not None and unread:
                report.checks["files"] = f"ok; weights that nothing reads: {some(unread)}"
    if expected is not None:
        with report.checking("checksums"):
            _compare(report, expected)
    if config is not None:
        _check_prompts(report, model, config)


def _files(model: Path) -> list[str]:
    """The weights come first: nothing else takes long."""
    found = (f for f in model.rglob("*") if f.is_file())
    names = [f.relative_to(model).as_posix() for f in found]
    visible = (name for name in names if not name.startswith(".") and name != SUMS)
    return sorted(visible, key=lambda name: (not name.endswith(".safetensors"), name))


def _digest(file: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with open_regular(file) as stream:
        while part := stream.read(_PART):
            digest.update(part)
            size += len(part)
    return size, digest.hexdigest()


def _check_tensors(report: Report, source: Unquantised, progress: Progress) -> None:
    """Every tensor is finite in bfloat16, every scale as it must be."""
    checkpoint, total = source.checkpoint, source.checkpoint.size
    report.tensors, unusable, at = len(source.pieces), 0, ""

    def decode(name: str, read: Read) -> Weight:
        nonlocal at
        if at != name:
            at = name
            report.bytes += sum(checkpoint.entries[piece].bytes for piece in source.pieces[name])
        progress(report.bytes, total)
        return source.decode(name, read)

    def failed(error: CheckpointError) -> None:
        nonlocal unusable
        unusable += 1
        if unusable <= _MOST:
            report.problems.append(str(error))

    for _ in checkpoint.tensors(source.pieces, decode, torch.bfloat16, failed=failed):
        pass
    if unusable > _MOST:
        report.problems.append(f"{unusable - _MOST} more tensors cannot be used")
    progress(total, total)


def _check_tied(report: Report, source: Unquantised) -> None:
    names = {
        slot.target: name
        for name, slot in source.slots.items()
        if slot.target in ("embedding", "lm_head")
    }
    if not source.config.tie_word_embeddings:
        report.checks["tied weights"] = "not tied"
    elif len(names) == 2:
        pieces = {name: source.pieces[name] for name in names.values()}
        found = source.checkpoint.tensors(pieces, source.decode, torch.bfloat16)
        one, other = (d if isinstance(d, torch.Tensor) else d.dequantized() for _, _, d in found)
        if not torch.equal(one, other):
            raise CheckpointError(
                f"{source.checkpoint.folder}: {names['lm_head']} differs from "
                f"{names['embedding']}, to which config.json ties it"
            )


def _check_prompts(report: Report, model: Path, config: Llama4Config) -> None:
    tokenizer = None
    with report.checking("tokenizer"):
        tokenizer = Tokenizer(model)
        report.problems += _ids(tokenizer, model, config)
    if tokenizer is None:
        return
    with report.checking("chat template"):
        try:
            read_templates(model)
        except ValueError as error:
            if "has no chat template" not in str(error):
                raise
            report.checks["chat template"] = "none: a base model"
            return
        Prompter(model, config).chat([user_message("Hello")])


def _ids(tokenizer: Tokenizer, model: Path, config: Llama4Config) -> Iterator[str]:
    """What does not fit together of tokenizer and config."""
    file, special = model / "tokenizer.json", {id: t for t, id in tokenizer.special.items()}
    if tokenizer.largest_id >= config.vocab_size:
        yield (
            f"{file}: has ids up to {tokenizer.largest_id}; expected them below the vocab_size "
            f"{config.vocab_size} of config.json"
        )
    for name, ids in (
        ("bos_token_id", (config.bos_token_id,)),
        ("eos_token_id", config.eos_token_ids),
        ("pad_token_id", (config.pad_token_id,)),
    ):
        for unknown in (i for i in ids if i is not None and i >= 0 and i not in special):
            yield f"{file}: {name} {unknown} of config.json is no special token"
    if config.bos_token_id is not None and tokenizer.bos_id not in (None, config.bos_token_id):
        yield (
            f"{file}: texts begin with {tokenizer.bos_id}; expected the bos_token_id "
            f"{config.bos_token_id} of config.json"
        )
    if config.vision is None:
        return
    for name, token, id in (
        ("image_token_index", "<|patch|>", config.image_token_index),
        ("boi_token_index", "<|image_start|>", config.boi_token_index),
        ("eoi_token_index", "<|image_end|>", config.eoi_token_index),
    ):
        if id is not None and tokenizer.special.get(token) != id:
            yield (
                f"{file}: {token} is {tokenizer.special.get(token)}; expected the {name} {id} of "
                f"config.json"
            )


def _compare(report: Report, expected: dict[str, str]) -> None:
    for name, digest in expected.items():
        found = report.files.get(name)
        if found is None:
            report.problems.append(f"{name}: is in the list of checksums, but not in the folder")
        elif found["sha256"] != digest:
            report.problems.append(
                f"{name}: its SHA-256 is not that of the list; download it again"
            )
    extra = [name for name in report.files if name not in expected]
    if extra:
        report.checks["checksums"] = f"ok; {len(extra)} files are not in the list"


def _print(report: Report) -> None:
    for name, file in report.files.items():
        line(styled(file["sha256"], "dim"), f"  {name}")
    line()
    facts(list(report.checks.items()))
    size = sum(file["bytes"] for file in report.files.values())
    line(
        f"{report.tensors:,} tensors, {len(report.files)} files, {size / 1e9:.3f} GB in "
        f"{report.seconds:.1f} s"
    )
    for problem in report.problems:
        line(styled(problem, "red"))
    line(styled("damaged" if report.problems else "whole", "bold"))
