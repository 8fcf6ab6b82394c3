"""Issue slots of a kernel's loop of products: how much a warp issues per pair of weights, by pipe.

`python -m tools.budget NAME` prints them. A scheduler issues one instruction of a warp a cycle, so
that slots are the first bound of code that prepares weights for the tensor core; the ALU takes two
cycles an instruction (16 lanes) and is the second. tests/kernels/test_budgets.py holds both to

    loop = { n_tiles = 1, slots_per_pair = "<= 3.6", alu_per_pair = "<= 1.6", rare = "<= 90" }

An m16n8k16 holds 256 weights, the same ones for each of the `n_tiles` of 8 tokens: a lane prepares
two pairs of them for each k8 of 16 rows. `rare` are the instructions that a turn may leave out
(tools/sass.py says which): not per pair, and held as well, so that work cannot hide there.
"""

from collections import Counter
from dataclasses import dataclass

from tools.sass import HotLoop

WEIGHTS = {"16816": 256, "1688": 128}  # of a product's left operand
PIPES = {
    "ALU": """LOP3 SHF PRMT IADD3 ISETP SEL LEA MOV VIADD VIADDMNMX VIMNMX IMNMX IABS PLOP3 FSETP
        FSEL FMNMX FCHK BMSK SGXT FLO LOP HMNMX2 HSETP2 HSET2 P2R R2P VOTE VABSDIFF""",
    "FMA": "FFMA FMUL FADD IMAD HFMA2 HADD2 HMUL2 FSWZADD",
    "convert": "F2FP F2F F2I I2F I2FP FRND MUFU POPC BREV",
    "LSU": """LDS LDSM STS STSM LDG STG LDGSTS LDGDEPBAR LD ST LDL STL ATOM ATOMG ATOMS RED REDG
        SHFL SYNCS LDC S2R CS2R S2UR R2UR REDUX MATCH UBLKCP UTMALDG UTMASTG MEMBAR FENCE
        ERRBAR CCTL""",
    "tensor": "HMMA IMMA DMMA HGMMA QGMMA",
    "control": """BRA JMP BSSY BSYNC BREAK EXIT RET NOP YIELD WARPSYNC BAR DEPBAR NANOSLEEP ELECT
        ACQBULK PREEXIT WARPGROUP BMOV B2R""",
}
PIPE_OF = {name: pipe for pipe, names in PIPES.items() for name in names.split()}
ALU_CYCLES = 2


@dataclass(frozen=True)
class Slots:
    """Of one turn of the loop."""

    products: int
    weights: int
    pipes: dict[str, int]
    rare: int

    @property
    def issued(self) -> int:
        return sum(self.pipes.values())

    def pairs(self, n_tiles: int) -> float:
        """Pairs of weights that one lane prepares."""
        return self.weights / n_tiles / 64

    def facts(self, n_tiles: int) -> dict[str, float]:
        """What a budget may hold."""
        pairs = self.pairs(n_tiles)
        alu = self.pipes.get("ALU", 0) * ALU_CYCLES
        return {
            "slots_per_pair": self.issued / pairs,
            "alu_per_pair": alu / pairs,
            "rare": self.rare,
        }


def pipe_of(opcode: str) -> str:
    """Uniform ones issue like others; a name that is not in the table has no pipe to count."""
    name = opcode.split(".", maxsplit=1)[0]
    if pipe := PIPE_OF.get(name):
        return pipe
    if name.startswith("U"):
        return "uniform"
    raise ValueError(f"{opcode}: expected an instruction of tools/slots.py's PIPES; add it there")


def slots_of(loop: HotLoop) -> Slots:
    shapes = [op.split(".")[1] for op in loop.opcodes if op.startswith("HMMA")]
    weights = sum(WEIGHTS[shape] for shape in shapes)
    return Slots(len(shapes), weights, dict(Counter(map(pipe_of, loop.opcodes))), loop.rare)


def describe(slots: Slots, n_tiles: int) -> str:
    pipes = ", ".join(f"{n} {pipe}" for pipe, n in sorted(slots.pipes.items(), key=lambda i: -i[1]))
    facts = slots.facts(n_tiles)
    return (
        f"a turn issues {slots.issued} ({pipes}) for {slots.products} products; {n_tiles} tiles of "
        f"8 tokens: {facts['slots_per_pair']:.2f} slots a pair of weights, ALU "
        f"{facts['alu_per_pair']:.2f} cycles a pair; {slots.rare} rare"
    )
