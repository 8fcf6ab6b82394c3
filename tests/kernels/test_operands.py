"""Registers that a tensor core still reads are not written: the compiler does not promise it.

wgmma reads its left operand from registers after it was issued. What runs on an emulator is PTX,
whose registers are virtual, so this looks at machine code: around each loop of such products twice,
in the order of addresses, as if nothing were skipped.
"""

import re
from collections.abc import Iterator

import pytest

from l4kernels.ops.library import LIBRARY_PATH
from tools import sass
from tools.nvcc import cuobjdump, output_of
from tools.sass import Flow, Instruction

PRODUCT = re.compile(r"\s*R(\d+), R(\d+), gdesc")
NO_RESULT = ("ST", "RED", "BRA", "BAR", "SYNCS", "WARPGROUP", "HGMMA", "U", "R2UR", "NOP", "MEMBAR")

Code = list[Instruction]


def is_product(i: Instruction) -> bool:
    return i.opcode.startswith("HGMMA") and PRODUCT.match(i.operands) is not None


def loops(code: Code) -> Iterator[Code]:
    """Those that hold products with a left operand in registers, and no other such loop."""
    flow = Flow(code)
    bodies = [
        blocks
        for blocks in flow.loops().values()
        if any(is_product(i) for at in blocks for i in flow.blocks[at])
    ]
    for blocks in bodies:
        if not any(inner < blocks for inner in bodies):
            yield [i for at in sorted(blocks) for i in flow.blocks[at]]


def written(opcode: str, operands: str) -> set[int]:
    first = re.match(r"\s*(?:P\w+, )?R(\d+)\b", operands)
    if first is None or opcode.startswith(NO_RESULT):
        return set()
    parts = opcode.split(".")
    wide = 4 if "128" in parts else 2 if "64" in parts or "WIDE" in parts or "CS2R" in parts else 1
    return set(range(int(first[1]), int(first[1]) + wide))


def overwritten(body: Code) -> list[str]:
    """Instructions that write what products in flight read."""
    open_group: set[int] = set()
    groups: list[set[int]] = []
    wrong = []
    for i in body * 2:
        if is_product(i):
            left = int(PRODUCT.match(i.operands)[2])
            open_group |= set(range(left, left + 4))
            if "gsb0" in i.operands:  # the group's last
                groups.append(open_group)
                open_group = set()
        elif i.opcode.startswith("WARPGROUP.DEPBAR"):
            pending = int(i.operands.split("0x")[1], 16)
            groups = groups[len(groups) - pending :] if pending < len(groups) else groups
        elif written(i.opcode, i.operands) & open_group.union(*groups):
            wrong.append(f"{i.at:x}: {i.opcode}{i.operands}")
    return wrong


@pytest.fixture(scope="module")
def kernels() -> dict[str, Code]:
    found = dict(sass.kernels(output_of(cuobjdump(), "-sass", str(LIBRARY_PATH))))
    return {name: code for name, code in found.items() if any(map(is_product, code))}


def test_no_register_is_written_while_a_product_reads_it(kernels):
    assert sum("w4_gemm" in name for name in kernels) >= 4 and len(kernels) >= 5
    for name, code in kernels.items():
        bodies = list(loops(code))
        assert bodies, name
        for body in bodies:
            assert not overwritten(body), f"{name}: {overwritten(body)}"


def test_words_and_slots_of_the_conversion_are_as_designed(kernels):
    """A part is 64 weight rows x 64 of K: 4 words of 8 codes a lane, 4 products."""
    for name, code in kernels.items():
        if "w4_gemm" not in name:
            continue
        bodies = list(loops(code))
        plain = min(bodies, key=len)
        parts = sum(map(is_product, plain)) // 4
        counts = {
            kind: sum(i.opcode.startswith(kind) for i in plain)
            for kind in ("LOP3", "HFMA2.BF16", "LDS.128", "HMUL2.BF16")
        }
        assert len(bodies) == 2, name  # the plain format, and others
        assert counts["HFMA2.BF16"] == 16 * parts and counts["LDS.128"] == parts, (name, counts)
        assert counts["LOP3"] <= 16 * parts + 6, (name, counts)  # one a pair
        # Of a part 16 products with a scale of 2 or more, which others jump over.
        assert len(plain) - 16 * parts <= 78 * parts, (name, len(plain))


LOOP = """
/*0010*/ HGMMA.64x64x16.F32.BF16 R24, R88, gdesc[UR8], R24, gsb0 ;
/*0020*/ WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
/*0030*/ {first} ;
/*0040*/ HGMMA.64x64x16.F32.BF16 R24, R92, gdesc[UR8], R24, gsb0 ;
/*0050*/ WARPGROUP.DEPBAR.LE gsb0, {pending} ;
/*0060*/ LDS.128 R88, [R2] ;
/*0070*/ @!P0 BRA 0x10 ;
/*0080*/ EXIT ;
"""


@pytest.mark.parametrize(
    "first, pending, wrong",
    [
        ("HMUL2.BF16_V2 R92, R4, R5", "0x1", 0),
        ("HMUL2.BF16_V2 R90, R4, R5", "0x1", 2),
        ("LDS.64 R90, [R4]", "0x1", 2),
        ("STS [R4], R90", "0x1", 0),
        ("ISETP.GE.AND P0, PT, R90, R4, PT", "0x1", 0),
        ("MOV R8, R90", "0x2", 2),
    ],
)
def test_the_test_sees_what_is_overwritten(first, pending, wrong):
    (body,) = loops(sass.instructions(LOOP.format(first=first, pending=pending)))
    assert len(overwritten(body)) == wrong
