"""The programs of `examples/` and the README run as they stand, with the demo checkpoint."""

import re
import runpy
import sys

import pytest
from fastapi.testclient import TestClient

from l4kernels.demo import CHECKPOINT
from tools.nvcc import ROOT

EXAMPLES = {  # what each prints, at the least
    "drop_in": ["grouped_gemm: [64, 256] x [4, 512, 256] -> [64, 512]", "moe_route: tokens go to"],
    "custom_op": ["torch.float32: equals its reference", "torch.bfloat16: equals its reference"],
    "generate": ["And it came to pass, when the king", "sampled: In the beginning", "6 (it is 6)"],
    "batch": ["And it came to pass, when the king", "And God saw him"],
}
NEEDS = {"ray_serve": "ray"}  # what `make venv` does not install


def test_every_example_is_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {*EXAMPLES, *NEEDS}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert not [text for text in EXAMPLES[name] if text not in printed], printed


@pytest.mark.parametrize("name, library", NEEDS.items())
def test_an_example_says_what_it_needs(name, library, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    monkeypatch.setitem(sys.modules, library, None)
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and f"pip install '{library}" in printed


def test_a_replica_for_ray_answers_and_says_when_it_cannot():
    """All of the example that is not Ray's."""
    example = runpy.run_path(str(ROOT / "examples" / "ray_serve.py"))
    replica = example["Replica"](str(CHECKPOINT), {"weights": None}, "demo")
    replica.check_health()
    with TestClient(replica.__serve_build_asgi_app__()) as client:
        assert client.get("/health").json() == {"status": "ok"}
        asked = {"model": "demo", "prompt": "And it came to pass", "max_tokens": 4, "stream": True}
        answer = client.post("/v1/completions", json=asked).text
        assert answer.count("data: ") > 4 and answer.endswith("data: [DONE]\n\n")
        replica.engine.close()
        with pytest.raises(RuntimeError, match="closed"):
            replica.check_health()
        assert client.get("/health").status_code == 503


def test_the_snippets_of_the_readme_run(capsys):
    snippets = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    known = {}  # one goes on where the other ended
    for snippet in snippets:
        exec(snippet, known)
    printed = capsys.readouterr().out
    assert "Work(flops=2560, bytes=6144)" in printed and len(snippets) == 3
    assert printed.count(", when the king of") == 3  # generated, streamed, by the engine


def test_the_snippets_of_the_page_on_the_engine_run(capsys):
    (snippet,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs/engine.md").read_text(), re.M | re.S
    )
    exec(snippet, {})
    printed = capsys.readouterr().out
    assert ", when the king" in printed and "finished=2" in printed
