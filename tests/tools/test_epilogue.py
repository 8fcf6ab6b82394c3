"""What a warp issues between the products of two tiles, on a small kernel whose ways are known."""

from tools.epilogue import facts_of
from tools.sass import instructions

CODE = """
    MOV R1, c[0x0][0x28]
    NOP                                  // 0x10: a tile
    QGMMA.64x128x32.F32.E4M3.E4M3 R24    // 0x20: a block of K
    @P0 BRA 0x20
    @P1 BRA 0xa0
    LDG.E R4, desc[UR4][R2.64]           // two loads that are waited for together
    LDG.E R5, desc[UR4][R2.64+0x20]
    FADD R24, R24, R4
    FADD R25, R25, R5
    BRA 0xa0
    @P2 BRA 0xf0                         // 0xa0: from here with one load after the other
    LDG.E R4, desc[UR4][R2.64]
    FADD R24, R24, R4
    LDG.E R4, desc[UR4][R2.64+0x20]
    FADD R24, R24, R4
    UTMASTG.2D [UR8], [UR4]              // 0xf0
    @P3 BRA 0x10
    EXIT
"""


def code(text: str):
    lines = [line.split("//")[0].strip() for line in text.strip().splitlines()]
    return instructions("\n".join(f"/*{16 * i:04x}*/ {line} ;" for i, line in enumerate(lines)))


def test_each_kind_is_the_shortest_way_with_what_it_is_made_of():
    facts = facts_of(code(CODE))
    assert facts["plain"] == 5 and facts["plain_waits"] == 0  # 0x10, 0x40, 0xa0, 0xf0, 0x100
    assert facts["biased"] == 5 + 5 + 4
    assert not {"residual", "swiglu", "codes"} & facts.keys()


def test_loads_on_their_way_together_are_waited_for_once():
    assert facts_of(code(CODE))["biased_waits"] == 1 + 2


def test_only_results_that_leave_by_tma_are_asked_for():
    assert facts_of(code(CODE.replace("UTMASTG.2D", "STG.E"))) == {}
    assert facts_of(code(CODE.replace("QGMMA.64x128x32.F32.E4M3.E4M3", "HMMA"))) == {}
