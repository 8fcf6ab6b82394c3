"""Reports of the emulator: their kinds and severities, and the settings that go on after them."""

import ctypes
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.emulator_programs import MODES, PROGRAMS, ROOT, build, control

RULE = "mbarrier-init-fence-missing"  # of mutant 15 of tma_copy
HEAD = ".version 9.0\n.target sm_90a\n.address_size 64\n"
ENTRY = """.visible .entry k(.param .u64 out) {
.reg .b32 %r<9>; .reg .b64 %d<9>; .reg .pred %p<4>;
.shared .align 16 .b8 s[64]; .shared .align 8 .b8 bar[8];
ld.param.u64 %d1, [out]; mov.u32 %r1, s; mov.u32 %r2, bar;
"""
# Both CTAs make their mbarrier before either arrives.
READY = (
    "mbarrier.init.shared.b64 [%r2], 1; fence.mbarrier_init.release.cluster;\n"
    "barrier.cluster.arrive; barrier.cluster.wait;\n"
)
BODIES = {  # of one thread a CTA, and clusters of two: each breaks one rule
    "copy-at-exit": "mbarrier.arrive.expect_tx.shared.b64 %d2, [%r2], 16;\n"
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%d1], 16, [%r2];\n",
    "store-at-exit": "st.shared.v4.b32 [%r1], {%r1, %r1, %r1, %r1}; fence.proxy.async;\n"
    "mov.u32 %r3, %cluster_ctarank; mul.wide.u32 %d3, %r3, 16; add.u64 %d1, %d1, %d3;\n"
    "cp.async.bulk.global.shared::cta.bulk_group [%d1], [%r1], 16; cp.async.bulk.commit_group;\n",
    "arrival-at-exit": "mov.u32 %r3, %cluster_ctarank; xor.b32 %r3, %r3, 1;\n"
    "mapa.shared::cluster.u32 %r4, %r2, %r3;\n"
    "mbarrier.arrive.shared::cluster.b64 _, [%r4];\n",
}


def run(body: str, line: str = "", **settings: Any) -> list[dict[str, Any]]:
    """The reports of a kernel: settings as the emulator has them, `line` its source."""
    emulator = control()
    emulator.reset()
    emulator.configure(**{"mode": "late", "seed": 1, "stop": "error", "ignore": [], **settings})
    memory = (ctypes.c_uint32 * 32)()
    address = ctypes.addressof(memory)
    emulator.register_range(address, 128)
    kernel = emulator.PtxKernel(HEAD + line + ENTRY + READY + body + "ret;\n}\n", "k")
    try:
        kernel.launch(
            (2, 1, 1), (1, 1, 1), cluster=(2, 1, 1), arguments=[address.to_bytes(8, "little")]
        )
    except RuntimeError as error:
        assert emulator.last_report()["text"] == str(error)
    else:
        assert emulator.last_report() is None
    finally:
        emulator.unregister_range(address, 128)
        emulator.configure(stop="error", ignore=[], suppress="")
    return list(emulator.reports())


def run_program(settings: str, program: str = "tma_copy", mutant: int = 15) -> tuple[int, str]:
    build("kernels")
    done = subprocess.run(
        [str(PROGRAMS / program), str(mutant)],
        check=False,
        capture_output=True,
        text=True,
        env=dict(os.environ, L4K_EMU=settings),
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_page_has_every_kind() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| (error|rule|benign)(, final)? \| (.+) \|$",
        (ROOT / "docs/emulator.md").read_text(),
        re.MULTILINE,
    )
    assert [(name, severity, bool(final), means) for name, severity, final, means in rows] == list(
        control().kinds()
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", BODIES)
def test_a_rule_is_reported_and_the_run_goes_on(kind: str, mode: str) -> None:
    for seed in range(8):
        assert {r["kind"] for r in run(BODIES[kind], mode=mode, seed=seed)} == {kind}
        (report,) = run(BODIES[kind], mode=mode, seed=seed, stop="rule")
        assert (report["kind"], report["severity"]) == (kind, "rule")
        assert run(BODIES[kind], mode=mode, seed=seed, ignore=["rule"]) == []


def test_going_on_is_printed_once_and_summed_up() -> None:
    status, output = run_program("mode=late")
    assert status == 0 and "PASS" in output
    assert output.count(f"l4k emulator: {RULE}: ") == 1
    assert "the run went on after reports at 1 place (" in output
    status, output = run_program(f"ignore={RULE}")
    assert status == 0 and RULE not in output and "that were ignored (" in output
    assert run_program("stop=rule")[0] != 0
    assert run_program("stop=rule,continue")[0] == 0


def test_a_report_that_stops_is_printed_once() -> None:
    status, output = run_program("mode=late", "vector_add", 1)  # prints cudaGetErrorString
    assert status != 0
    assert output.count("  PTX     line") == 1


def test_a_refusal_says_why_unasked() -> None:
    for mutant, why in [(1, "dynamic shared memory"), (5, "globalAddress")]:
        _, output = run_program("", "refused", mutant)
        assert len(re.findall(f"^l4k emulator refuses: .*{why}", output, re.MULTILINE)) == 1
        assert "refuses" not in run_program("print=0", "refused", mutant)[1]


@pytest.mark.parametrize(
    "setting",
    ["ignore=no-such-kind", "ignore=deadlock", "stop=warning", "suppress=/no/such/file", "ignore="],
)
def test_a_setting_that_means_nothing_is_refused(setting: str) -> None:
    key, value = setting.split("=")
    with pytest.raises(ValueError, match=value or "expected one of benign"):
        control().configure(**{key: [value] if key == "ignore" else value})
    status, output = run_program(setting)
    assert status == 2 and output.startswith("L4K_EMU: ")


def suppressions(tmp_path: Path, text: str) -> str:
    path = tmp_path / "suppressions"
    path.write_text(text)
    return str(path)


def test_a_file_suppresses_by_kind_and_place(tmp_path: Path) -> None:
    body = f".loc 1 7 0\n{BODIES['copy-at-exit']}"
    file = f'.file 1 "{tmp_path}/kernels/copy.cu"\n'
    accepted = ["copy-at-exit copy.cu:7", "rule */kernels/*.cu # all", f"copy-at-exit {tmp_path}/*"]
    for text in accepted:
        settings = {"suppress": suppressions(tmp_path, f"# why\n\n{text}\n"), "stop": "rule"}
        assert run(body, file, **settings) == [], text
    for text in [
        "copy-at-exit copy.cu:8",
        "store-at-exit copy.cu",
        "benign copy.cu",
        "rule opy.cu",
    ]:
        settings = {"suppress": suppressions(tmp_path, text), "stop": "rule"}
        assert len(run(body, file, **settings)) == 1, text
    for text in ["rule", "rule a b", "typo copy.cu"]:
        with pytest.raises(ValueError, match="suppressions:1: "):
            control().configure(suppress=suppressions(tmp_path, text))


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("\n\ncopy();  // l4k-emu: ignore(copy-at-exit)\n", 0),
        ("\n  // l4k-emu: ignore(store-at-exit, rule)\ncopy();\n", 0),
        ("\n\ncopy();  // l4k-emu: ignore(store-at-exit)\n", 1),
        ("\ncopy();  // l4k-emu: ignore(copy-at-exit)\ncopy();\n", 1),
        ("\n\ncopy();\n// l4k-emu: ignore(copy-at-exit)\n", 1),
    ],
)
def test_a_comment_suppresses(source: str, kept: int, tmp_path: Path) -> None:
    (tmp_path / "copy.cu").write_text(source)
    body = f".loc 1 3 0\n{BODIES['copy-at-exit']}"
    assert len(run(body, f'.file 1 "{tmp_path}/copy.cu"\n', stop="rule")) == kept
