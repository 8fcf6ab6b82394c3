"""What a program of conformance writes: cases, words of inputs, words of outputs."""

import hashlib
import json
import lzma
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]


@dataclass(frozen=True)
class Table:
    cases: tuple[str, ...]
    inputs: Words  # [cases, or 1 if all share them, rows, words]
    outputs: Words  # [cases, rows, words]

    @classmethod
    def parse(cls, written: bytes) -> "Table":
        line, _, words = written.partition(b"\n")
        head = json.loads(line)
        cases, rows = tuple(head["cases"]), head["rows"]
        values = np.frombuffer(words, np.uint32)
        own = len(cases) if head["own_inputs"] else 1
        split = own * rows * head["input_words"]
        return cls(
            cases,
            values[:split].reshape(own, rows, head["input_words"]),
            values[split:].reshape(len(cases), rows, head["output_words"]),
        )

    def inputs_of(self, case: int) -> Words:
        return self.inputs[case if len(self.inputs) > 1 else 0]


@dataclass(frozen=True)
class Expected:
    """The emulator's outputs, and of what; inputs are made again by whoever compares."""

    cases: tuple[str, ...]
    inputs: str  # their digest
    outputs: Words = field(repr=False)

    @classmethod
    def of(cls, table: Table) -> "Expected":
        return cls(table.cases, digest(table.inputs), table.outputs)

    def pack(self) -> bytes:
        head = {"cases": self.cases, "inputs": self.inputs, "shape": self.outputs.shape}
        return lzma.compress(json.dumps(head).encode() + b"\n" + self.outputs.tobytes())

    @classmethod
    def unpack(cls, packed: bytes) -> "Expected":
        line, _, words = lzma.decompress(packed).partition(b"\n")
        head = json.loads(line)
        outputs = np.frombuffer(words, np.uint32).reshape(head["shape"])
        return cls(tuple(head["cases"]), head["inputs"], outputs)

    def check_is_of(self, table: Table) -> None:
        if (self.cases, self.inputs) != (table.cases, digest(table.inputs)):
            raise ValueError(
                "expected outputs of the same cases and inputs, got those of another build: "
                "`make gpu-files` makes both"
            )


def digest(words: Words) -> str:
    return hashlib.sha256(words.tobytes()).hexdigest()
