"""What each microbenchmark prints, which values nobody should believe, and what its machine code
must hold. The reasons stand at the head of each program."""

from dataclasses import dataclass

Bounds = tuple[float, float]
"""Lowest and highest value that is believed."""

LOCAL = ("LDL", "STL")
SHARED = ("LDS", "STS", "LDSM", "STSM")
GLOBAL = ("LDG", "STG", "LD", "ST", "ATOM", "ATOMG", "ATOMS", "RED", "REDG", "LDGSTS")
MEMORY = (*LOCAL, *SHARED, *GLOBAL)


@dataclass(frozen=True)
class Code:
    """The smallest loop of a kernel that has every instruction of `holds`, or the whole kernel."""

    kernel: str  # a regular expression for the mangled name; every kernel that fits is looked at
    holds: dict[str, int]  # exactly this many
    without: tuple[str, ...] = MEMORY
    whole: bool = False
    order: str = ""  # the instructions of `holds`, in this order


@dataclass(frozen=True)
class Program:
    metrics: dict[str, Bounds]
    code: tuple[Code, ...]


def _wgmma_sweep() -> dict[str, Bounds]:
    found = {}
    for source, from_a in (("ss", 2048), ("rs", 0)):
        for n in (8, 16, 32, 64, 128, 192, 256):
            bound = max(n / 2, (from_a + 32 * n) / 128)
            for kind in ("bf16", "e4m3"):
                found[f"{kind}_{source}_n{n}"] = (0.97 * n / 2, 2 * bound + 32)
    return found


def _run_ahead() -> dict[str, Bounds]:
    found = {}
    for name in ("ss_n64", "ss_n128", "ss_n256", "rs_n128", "rs_n256", "committed_n256"):
        cycles = int(name.rsplit("n", 1)[1]) / 2
        found["lead_" + name] = (0, 13)
        found["finish_" + name] = (10, 16 * cycles + 500)
        found["all_" + name] = (0.97 * cycles, 2 * cycles + 64)
    return found


def _tma_latency() -> dict[str, Bounds]:
    bounds = {"l2": (300, 2500), "dram": (450, 5000)}
    found: dict[str, Bounds] = {}
    for size in ("1k", "16k"):
        for place, (low, high) in bounds.items():
            found[f"{place}_{size}"] = (low, high)
            found[f"{place}_{size}_ns"] = (low / 2, high)
        found[f"first_copy_{size}"] = (300, 10000)
    return found


def _tma_store() -> dict[str, Bounds]:
    awaited = [f"awaited_{size}_{sms}" for sms in ("one", "all") for size in ("2k", "16k", "64k")]
    found: dict[str, Bounds] = dict.fromkeys(awaited, (250, 20000))
    found |= dict.fromkeys(("awaited_2k_one", "awaited_2k_all"), (80, 20000))
    found |= {"read_16k_all": (100, 20000), "read_64k_all": (400, 40000)}
    found |= {"in_flight_16k_all": (200, 20000)}
    return found | {f"{name}_rate": (0.05, 66.0) for name in found}


def _shared_memory() -> dict[str, Bounds]:
    found: dict[str, Bounds] = {}
    for n in (64, 128, 256):
        for how in ("alone", "shared"):
            found[f"products_{how}_n{n}"] = (0.97 * n / 2, 3 * n)
            found[f"copies_{how}_n{n}"] = (2, 66)
    return found


CHAINS = [
    "stream",
    "stream_dependent",
    "graph",
    "graph_dependent",
    "graph_0k_carveout",
    "graph_200k",
    "graph_0k_200k",
    "graph_0k_200k_carveout",
    "dependent_0k_carveout",
    "dependent_100k",
    "dependent_200k",
    "dependent_200k_carveout",
    "dependent_0k_100k",
    "dependent_0k_100k_carveout",
    "dependent_0k_200k",
    "dependent_0k_200k_carveout",
    "dependent_100k_200k",
    "dependent_100k_200k_carveout",
]
EMPTY = [
    "empty",
    "empty_not_dependent",
    "empty_early",
    "empty_late",
    "smem_100k",
    "smem_200k",
    "smem_100k_early",
    "smem_200k_early",
    "cluster_2",
    "cluster_4",
    "cluster_8",
    "cluster_2_200k",
    "cluster_4_200k",
    "cluster_8_200k",
    "setmaxnreg_384",
    "barrier_2",
    "barrier_4",
    "barrier_2_relaxed",
    "copy_100k",
    "copy_200k",
    "copy_100k_early",
    "copy_200k_early",
    "full",
    "full_early",
    "full_late",
]
READING = [
    "inside",
    "not_dependent",
    "200k",
    "100k_early",
    "200k_early",
    "200k_late",
    "100k_before_wait",
    "200k_before_wait",
    "full_early",
]

HGMMA, UTMALDG, ACQBULK, PREEXIT = "HGMMA", "UTMALDG", "ACQBULK", "PREEXIT"
WAKE_UPS = {"mbarrier": (15, 400), "named_barrier": (10, 400), "remote_mbarrier": (100, 2000)}
CLUSTER_BARRIERS = ("cluster_barrier_2", "cluster_barrier_8", "cluster_barrier_2_relaxed")
BANDWIDTHS = {
    "l2_one": (16, 66),
    "l2_quarter": (16, 66),
    "l2_all": (16, 66),
    "multicast_2": (16, 130),
    "multicast_4": (16, 130),
    "dram_all": (5, 40),
    "l2_one_tbs": (0.02, 0.14),
    "l2_quarter_tbs": (0.5, 4.5),
    "l2_all_tbs": (3, 17),
    "multicast_2_tbs": (3, 34),
    "multicast_4_tbs": (3, 34),
    "dram_all_tbs": (1.5, 4.85),
}

PROGRAMS = {
    "wgmma_sweep": Program(
        _wgmma_sweep(),
        (
            Code("sweepI.*bfloat16", {HGMMA: 16, "WARPGROUP.DEPBAR": 1}),
            Code("sweepI.*e4m3", {"QGMMA": 16, "WARPGROUP.DEPBAR": 1}),
        ),
    ),
    "run_ahead": Program(
        _run_ahead(),
        (
            Code(
                "leadI",
                {HGMMA: 16, "CS2R": 18},
                order=" ".join(["CS2R", *(["HGMMA CS2R"] * 16), "CS2R"]),
            ),
        ),
    ),
    "tma_latency": Program(_tma_latency(), (Code("latencyI", {UTMALDG: 1, "SYNCS.ARRIVE": 1}),)),
    "l2_bandwidth": Program(
        BANDWIDTHS,
        (
            Code("readILi1E", {UTMALDG: 1, "SYNCS.ARRIVE": 1}),
            Code("readILi2E", {UTMALDG: 1, "SYNCS.ARRIVE": 3}),
            Code("readILi4E", {UTMALDG: 1, "SYNCS.ARRIVE": 5}),
        ),
    ),
    "tma_store": Program(
        _tma_store(),
        (
            Code(r"storeILi\d+ELi1E", {"UTMASTG": 1, "UTMACMDFLUSH": 1}),
            Code(r"storeILi\d+ELi4E", {"UTMASTG": 4, "UTMACMDFLUSH": 1}),
        ),
    ),
    "mbarrier_wake": Program(
        WAKE_UPS | dict.fromkeys(CLUSTER_BARRIERS, (40, 5000)),
        (
            Code("turnsILNS_3WayE[02]E", {"SYNCS.ARRIVE": 1}),
            Code("turnsILNS_3WayE1E", {"BAR.SYNC": 1, "BAR.ARV": 1}),
            Code("cluster_barriersILb1E", {"UCGABAR_ARV": 1, "UCGABAR_WAIT": 1, "MEMBAR": 1}),
            Code("cluster_barriersILb0E", {"UCGABAR_ARV": 1, "UCGABAR_WAIT": 1, "MEMBAR": 0}),
        ),
    ),
    "shared_memory": Program(
        _shared_memory(),
        (
            Code("shareI", {HGMMA: 16, "WARPGROUP.DEPBAR": 1}),
            Code("shareI", {UTMALDG: 1, "SYNCS.ARRIVE": 1}),
        ),
    ),
    "grid_barrier": Program(
        {"grid_barrier_us": (0.3, 10), "grid_barrier": (500, 20000)},
        (
            Code(
                "rounds_ofILb0E",
                {"REDG": 1, "LDG": 3, "BAR": 2},
                without=(*LOCAL, *SHARED, "STG", "LD", "ST", "ATOMG"),
            ),
        ),
    ),
    "launch_chain": Program(
        dict.fromkeys(CHAINS, (0.2, 50)),
        (Code("linkI", {ACQBULK: 1, PREEXIT: 1, "LDG": 1, "STG": 1}, (*LOCAL, *SHARED), True),),
    ),
    "launch_cost": Program(
        dict.fromkeys(EMPTY, (0.2, 50))
        | dict.fromkeys((f"read_40m_{how}" for how in READING), (8, 80)),
        (
            Code("costILj0E", {ACQBULK: 1, PREEXIT: 0}, whole=True),
            Code("costILj(8|16)E", {ACQBULK: 1, PREEXIT: 1}, whole=True),
            Code("costILj(1|2|6)E", {ACQBULK: 1, PREEXIT: 0}, whole=True),
            Code("costILj(32|35|40|43|48|51|104)E", {UTMALDG: 1, "SYNCS.ARRIVE": 1, "CS2R": 2}),
        ),
    ),
}
