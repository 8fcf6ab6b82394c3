"""Checkpoint folders that a stranger could send: one change to a good one each.

`python -m tests.support.hostile` tries them all; `test_hostile_checkpoints.py` tries a share.
"""

import copy
import functools
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from l4kernels import Llama4, Llama4Config
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.inputs.fields import ConfigError
from tests.support.checkpoints import TEXT, tensors_of, write

SECONDS = 2.0
SIZES = {
    "num_hidden_layers": 2,
    "num_local_experts": 2,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
ROPE = {
    "rope_type": "llama3",
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
}
CONFIG = {**TEXT, **SIZES, "rope_scaling": ROPE, "layer_types": ["chunked_attention"] * 2}
GENERATION = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 4}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
IDS = torch.arange(3)[None]

VALUES = [
    None, True, 0, -1, 3, 2.5, 1e308, "@huge@", "@longer@", "@deep@", float("nan"), float("-inf"),
    "", "x" * 5000, "\ud800\x1b[31m", [], [1], [None, {}], [0] * 5000, {}, {"a": [1]},
]  # fmt: skip
RAW = {'"@huge@"': "1" + "0" * 400, '"@longer@"': "-1" + "0" * 6000}
RAW['"@deep@"'] = "[" * 900 + "]" * 900

Change = Callable[[Path], None]


def dumps(value: object) -> str:
    text = json.dumps(value)
    for mark, raw in RAW.items():
        text = text.replace(mark, raw)
    return text


def paths(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Every place inside a JSON value; of a list the first element stands for all."""
    if path:
        yield path
    inner = dict(enumerate(value[:1])) if isinstance(value, list) else value
    for key, item in inner.items() if isinstance(inner, dict) else ():
        yield from paths(item, (*path, key))


def put(value: dict, path: tuple, new: object) -> dict:
    value = copy.deepcopy(value)
    at = value
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return value


def written(file: str, *parts: bytes | str) -> Change:
    def change(folder: Path) -> None:
        content = (part if isinstance(part, bytes) else part.encode() for part in parts)
        (folder / file).write_bytes(b"".join(content))

    return change


def json_changes(
    file: str, content: dict, places: Iterable[tuple] | None = None
) -> Iterator[tuple[str, Change]]:
    for path in paths(content) if places is None else places:
        for number, value in enumerate(VALUES):
            yield f"{file} {path} {number}", written(file, dumps(put(content, path, value)))
    plain = dumps(content)
    yield from (
        (f"{file} {name}", written(file, new))
        for name, new in {
            "empty": b"",
            "cut": plain[: len(plain) // 2].encode(),
            "no object": b"[1]",
            "a number": b"7",
            "deep": (f'{{"a": {"[" * 100_000}{"]" * 100_000}, ' + plain[1:]).encode(),
            "open": b"[" * 1_000_000,
            "twice": (plain[:-1] + ", " + plain[1:]).encode(),
            "byte order mark": b"\xef\xbb\xbf" + plain.encode(),
            "utf-16": plain.encode("utf-16"),
            "utf-32": plain.encode("utf-32"),
            "latin-1": b'{"\xe9": 1, ' + plain[1:].encode(),
            "zero bytes": b"\0" * 1000,
            "many keys": dumps({**{f"k{i}": i for i in range(50_000)}, **content}).encode(),
            "large": plain.encode() + b" " * (80 << 20),
        }.items()
    )


def special_files(file: str) -> Iterator[tuple[str, Change]]:
    def link(target: str) -> Change:
        return lambda folder: (folder / file).symlink_to(target)

    def listen(folder: Path) -> None:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(os.path.relpath(folder / file))

    def huge(folder: Path) -> None:
        (folder / file).touch()
        os.truncate(folder / file, 1 << 40)

    made: dict[str, Change] = {
        "pipe": lambda folder: os.mkfifo(folder / file),
        "zeros": link("/dev/zero"),
        "null": link("/dev/null"),
        "random": link("/dev/urandom"),
        "terminal": link("/dev/tty"),
        "folder": lambda folder: (folder / file).mkdir(),
        "link to itself": link(file),
        "link to nothing": link("nowhere"),
        "socket": listen,
        "a terabyte of nothing": huge,
    }

    def instead(change: Change) -> Change:
        def replaced(folder: Path) -> None:
            (folder / file).unlink()
            change(folder)

        return replaced

    for name, change in made.items():
        yield f"{file} {name}", instead(change)


def header_changes(file: Path) -> Iterator[tuple[str, Change]]:
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = list(header)
    first, last = names[0], names[-1]

    def raw(text: bytes, data: bytes = data, length: int | None = None) -> Change:
        start = (len(text) if length is None else length).to_bytes(8, "little")
        return written(SINGLE, start, text, data)

    for name in (first, last):
        for path in ((name,), *((name, *p) for p in paths(header[name]))):
            for number, value in enumerate(VALUES):
                yield f"header {path} {number}", raw(dumps(put(header, path, value)).encode())
    plain = json.dumps(header).encode()
    again = json.dumps({first: header[first]}).encode()
    begin, end = header[first]["data_offsets"]
    for length in (
        0,
        1,
        size - 1,
        size + 1,
        1 << 24,
        100_000_000,
        1 << 32,
        (1 << 63) - 1,
        (1 << 64) - 1,
    ):
        yield f"header of {length}", raw(plain, length=length)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    unfit = {**header, first: {**header[first], "data_offsets": [begin + 4, end + 4]}}
    yield from (
        ("header twice the same", raw(plain[:-1] + b", " + again[1:])),
        ("header overlapping", raw(json.dumps({**header, "copy": header[first]}).encode())),
        ("header shifted", raw(json.dumps(unfit).encode())),
        ("header with an empty tensor", raw(json.dumps({**header, "none": empty}).encode())),
        ("header renamed", raw(plain.replace(first.encode(), b"x" * len(first)))),
        ("header with an endless name", raw(json.dumps({**header, "x" * 10**6: empty}).encode())),
        ("header with a hostile name", raw(json.dumps({**header, "\x1b[2J\n": empty}).encode())),
        (
            "header with 200,000 names",
            raw(json.dumps({**header, **{f"n{i}": empty for i in range(200_000)}}).encode()),
        ),
        ("header of 100 MB", raw(plain + b" " * 99_000_000)),
        ("header in UTF-16", raw(plain.decode().encode("utf-16"))),
        ("header deep", raw(b'{"a":' * 100_000)),
        ("data cut", raw(plain, data[:-1])),
        ("data trailing", raw(plain, data + b"\0" * 64)),
        ("data absent", raw(plain, b"")),
        ("data not a number", raw(plain, b"\xff" * len(data))),
    )


def index_changes(weight_map: dict) -> Iterator[tuple[str, Change]]:
    """Over a folder of two shards."""
    shard = next(iter(weight_map.values()))
    places = [
        "../x", "/dev/zero", "/etc/passwd", ".", "..", "", " ", "\0", "x" * 300, "\ud800", "sub/x",
        "config.json", INDEX, f"./{shard}", f"sub/../{shard}", shard.upper(), "\x1b[2J", "~/x",
        7, None,
    ]  # fmt: skip
    first = next(iter(weight_map))
    for place in places:
        for one in (True, False):
            changed = {**weight_map, first: place} if one else dict.fromkeys(weight_map, place)
            text = json.dumps({"weight_map": changed})
            yield f"index {place!r:.20} {one}", written(INDEX, text)
    many = {f"t{i}": f"shard-{i}.safetensors" for i in range(100_000)}
    for name, content in {
        "absent": {k: v for k, v in weight_map.items() if k != first},
        "empty": {},
        "many shards": {**many, **weight_map},
        "many names": {**{f"t{i}": shard for i in range(200_000)}, **weight_map},
    }.items():
        yield f"index {name}", written(INDEX, json.dumps({"weight_map": content}))
    yield "index of large headers", functools.partial(large_headers, weight_map)


def large_headers(weight_map: dict, folder: Path) -> None:
    """A thousand names of one file with a header of 7 MB, and no tensor."""
    header = json.dumps({"__metadata__": {"x": "x" * (7 << 20)}}).encode()
    names = [f"empty-{i}.safetensors" for i in range(1000)]
    written(names[0], len(header).to_bytes(8, "little"), header)(folder)
    for name in names[1:]:
        os.link(folder / names[0], folder / name)
    placed = weight_map | {name: name for name in names}
    (folder / INDEX).write_text(json.dumps({"weight_map": placed}))


class Folders:
    """A good folder with one file, one with two shards, and all changes to them."""

    def __init__(self, root: Path):
        self.root = root
        tensors = tensors_of(Llama4Config.from_dict(CONFIG))
        self.one = write(root / "one", tensors, **CONFIG)
        self.two = write(root / "two", tensors, shards=2, **CONFIG)
        for folder in (self.one, self.two):
            (folder / "generation_config.json").write_text(json.dumps(GENERATION))

    @functools.cached_property
    def changes(self) -> list[tuple[str, Path, Change]]:
        index = json.loads((self.two / INDEX).read_text())
        first, shard = next(iter(index["weight_map"].items()))
        places = [("metadata",), ("weight_map",), ("weight_map", first)]
        of_one = [
            *json_changes("config.json", CONFIG),
            *json_changes("generation_config.json", GENERATION),
            *header_changes(self.one / SINGLE),
            *special_files("config.json"),
            *special_files("generation_config.json"),
            *special_files(SINGLE),
        ]
        of_two = [
            *json_changes(INDEX, index, places),
            *index_changes(index["weight_map"]),
            *special_files(INDEX),
            *special_files(shard),
        ]
        return [(n, self.one, c) for n, c in of_one] + [(n, self.two, c) for n, c in of_two]

    def outcome(self, name: str, good: Path, change: Change) -> str:
        """ "loaded" or the package's error; raises for anything else, or what takes too long."""
        folder = self.root / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        change(folder)
        with time_limit(SECONDS):
            try:
                model = Llama4.from_pretrained(folder)
            except (ConfigError, CheckpointError) as error:
                message = str(error)
                assert len(message) < 2000 and message.isprintable(), f"{name}: {message[:300]!r}"
                return message
        ids = IDS % model.config.vocab_size
        logits = model.prompt_logits(ids, attention_mask=torch.ones_like(ids))
        assert logits.shape == (1, IDS.shape[1], model.config.vocab_size), name
        assert logits.isfinite().all(), name
        return "loaded"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Processor time; a call that waits is interrupted after ten times as many seconds."""

    def late(*_: object) -> None:
        raise TimeoutError("it hangs")

    started = time.process_time()
    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    taken = time.process_time() - started
    assert taken < seconds, f"took {taken:.1f} s"


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        folders = Folders(Path(root))
        loaded = failed = 0
        changes = folders.changes
        for name, good, change in changes:
            try:
                outcome = folders.outcome(name, good, change)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failed += 1
                print(f"{name!r}: {type(error).__name__}: {error}"[:300])
                continue
            loaded += outcome == "loaded"
            if "-v" in sys.argv:
                print(f"{name!r:.80}: {outcome:.200}")
        print(f"{len(changes)} folders: {loaded} loaded, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
