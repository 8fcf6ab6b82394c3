"""Registers that a tensor core still reads are not written: the compiler does not promise it.

wgmma reads its left operand from registers after it was issued. What runs on an emulator is PTX,
whose registers are virtual, so this looks at machine code: around each loop of such products twice,
in the order of addresses, as if nothing were skipped.
"""

import re
from collections.abc import Iterator

import pytest

from l4kernels.ops.library import LIBRARY_PATH
from tools.nvcc import cuobjdump, output_of

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)([^;]*);")
PRODUCT = re.compile(r"\s*R(\d+), R(\d+), gdesc")
NO_RESULT = ("ST", "RED", "BRA", "BAR", "SYNCS", "WARPGROUP", "HGMMA", "U", "R2UR", "NOP", "MEMBAR")

Code = list[tuple[int, str, str]]  # address, opcode, operands


def loops(code: Code) -> Iterator[Code]:
    """Those that hold products with a left operand in registers, and no other such loop."""
    place = {at: i for i, (at, _, _) in enumerate(code)}
    found = []
    for end, (at, opcode, operands) in enumerate(code):
        target = re.findall(r"0x([0-9a-f]+)", operands)
        if opcode.startswith("BRA") and target and int(target[-1], 16) <= at:
            body = code[place[int(target[-1], 16)] : end + 1]
            if any(is_product(*i) for i in body):
                found.append(body)
    for body in found:
        if not any(body[0] <= inner[0] and inner[-1] < body[-1] for inner in found):
            yield body


def is_product(_at: int, opcode: str, operands: str) -> bool:
    return opcode.startswith("HGMMA") and PRODUCT.match(operands) is not None


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
    for at, opcode, operands in body * 2:
        if is_product(at, opcode, operands):
            left = int(PRODUCT.match(operands)[2])
            open_group |= set(range(left, left + 4))
            if "gsb0" in operands:  # the group's last
                groups.append(open_group)
                open_group = set()
        elif opcode.startswith("WARPGROUP.DEPBAR"):
            pending = int(operands.split("0x")[1], 16)
            groups = groups[len(groups) - pending :] if pending < len(groups) else groups
        elif written(opcode, operands) & open_group.union(*groups):
            wrong.append(f"{at:x}: {opcode}{operands}")
    return wrong


def parse(text: str) -> Code:
    return [(int(at, 16), opcode, rest) for at, opcode, rest in INSTRUCTION.findall(text)]


@pytest.fixture(scope="module")
def kernels() -> dict[str, Code]:
    parts = output_of(cuobjdump(), "-sass", str(LIBRARY_PATH)).split("Function : ")[1:]
    code = {name: parse(body) for name, _, body in (part.partition("\n") for part in parts)}
    return {name: body for name, body in code.items() if any(is_product(*i) for i in body)}


def test_no_register_is_written_while_a_product_reads_it(kernels):
    assert sum("w4_gemm" in name for name in kernels) >= 5 and len(kernels) >= 6
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
        parts = sum(is_product(*i) for i in plain) // 4
        counts = {
            kind: sum(op.startswith(kind) for _, op, _ in plain)
            for kind in ("LOP3", "HFMA2.BF16", "LDS.128", "HMUL2.BF16")
        }
        assert len(bodies) == 2, name  # the plain format, and others
        assert counts["HFMA2.BF16"] == 16 * parts and counts["LDS.128"] == parts, (name, counts)
        assert counts["LOP3"] <= 16 * parts + 6, (name, counts)  # one a pair
        # Of a part 16 products with a scale of 2 or more, which others jump over.
        assert len(plain) - 16 * parts <= 77 * parts, (name, len(plain))


LOOP = """
/*0010*/ HGMMA.64x64x16.F32.BF16 R24, R88, gdesc[UR8], R24, gsb0 ;
/*0020*/ WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
/*0030*/ {first} ;
/*0040*/ HGMMA.64x64x16.F32.BF16 R24, R92, gdesc[UR8], R24, gsb0 ;
/*0050*/ WARPGROUP.DEPBAR.LE gsb0, {pending} ;
/*0060*/ LDS.128 R88, [R2] ;
/*0070*/ @!P0 BRA 0x10 ;
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
    (body,) = loops(parse(LOOP.format(first=first, pending=pending)))
    assert len(overwritten(body)) == wrong
