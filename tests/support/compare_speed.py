"""The same checkpoint here and in transformers: a forward of 512 tokens, and decoding on a CPU.

Prints JSON: of the forward, the best of several interleaved runs, and the peak memory above the
loaded model, each implementation in a process of its own; of decoding, CPU milliseconds a token.
`python tests/support/compare_speed.py FOLDER`, of a model like TEXT
`python tests/support/compare_speed.py l4kernels/demo/checkpoint decode 20`
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from tools.nvcc import ROOT

TEXT = {
    "model_type": "llama4_text",
    "interleave_moe_layer_step": 1,
    "use_qk_norm": True,
    "floor_scale": 8192,
    "vocab_size": 4096,
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "intermediate_size_mlp": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "num_local_experts": 16,
    "attention_chunk_size": 8192,
    "max_position_embeddings": 8192,
}
TOKENS = 512
NEW_TOKENS = 33


def load(kind: str, folder: str) -> tuple[torch.nn.Module, Callable]:
    """The model, and a function from token ids to logits."""
    if kind == "ours":
        from l4kernels import Llama4

        model = Llama4.from_pretrained(folder)
        return model, model.prompt_logits
    import transformers

    model = transformers.Llama4ForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    return model, lambda ids: model(ids).logits


def prompt(tokens: int = TOKENS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, TEXT["vocab_size"], (1, tokens), generator=generator)


def resident(name: str) -> int:
    with open("/proc/self/status") as status:
        return int(re.search(rf"{name}:\s+(\d+) kB", status.read())[1]) << 10


@torch.inference_mode()
def peak_above_model(kind: str, folder: str) -> int:
    """Bytes of one forward: the high-water mark above what is resident after loading."""
    model, run = load(kind, folder)
    # Pages of a mapped file come in when first read: a sum touches all weights, so that they
    # count as the model's own, and a short prompt brings in code and thread pools.
    for tensor in model.parameters():
        tensor.sum()
    run(prompt(32))
    with open("/proc/self/clear_refs", "w") as mark:
        mark.write("5")
    before = resident("VmRSS")
    run(prompt())
    return resident("VmHWM") - before


@torch.inference_mode()
def seconds(folder: str, rounds: int) -> dict[str, float]:
    """The best time of each, their runs interleaved so that noise hits both alike."""
    # One thread: on a shared machine, waiting for the second one would drown the difference.
    torch.set_num_threads(1)
    models = {kind: load(kind, folder)[1] for kind in ("ours", "theirs")}
    best = dict.fromkeys(models, float("inf"))
    outputs = {kind: model(prompt()) for kind, model in models.items()}
    torch.testing.assert_close(outputs["ours"], outputs["theirs"], rtol=0, atol=1e-4)
    for _ in range(rounds):
        for kind, model in models.items():
            started = time.perf_counter()
            model(prompt())
            best[kind] = min(best[kind], time.perf_counter() - started)
    return best


@torch.inference_mode()
def decode_milliseconds(folder: str, rounds: int) -> dict[str, float]:
    """CPU time of one of NEW_TOKENS greedy tokens on one thread, the best of interleaved runs: on
    a machine that others use it is the time that does not depend on them."""
    import transformers

    from l4kernels import Llama4

    torch.set_num_threads(1)
    ids = torch.tensor([[1, 2, 100, 5, 6, 7, 8, 9]])
    ours = Llama4.from_pretrained(folder)
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    runs = {
        "ours": lambda: ours.generate(ids, NEW_TOKENS, stop_ids=()),
        "theirs": lambda: theirs.generate(input_ids=ids, do_sample=False, **length),
    }
    assert torch.equal(runs["ours"](), runs["theirs"]())
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for kind, run in runs.items():
            started = time.thread_time()
            run()
            best[kind] = min(best[kind], time.thread_time() - started)
    return {kind: 1e3 * seconds / NEW_TOKENS for kind, seconds in best.items()}


def compare(folder: str, rounds: int = 3) -> dict[str, dict[str, float]]:
    memory = {kind: measure(folder, "memory", kind) for kind in ("ours", "theirs")}
    return {"seconds": measure(folder, "seconds", str(rounds)), "bytes": memory}


def measure(folder: str, *arguments: str) -> Any:
    """What this script prints, in a process of its own."""
    command = [sys.executable, "-m", "tests.support.compare_speed", folder, *arguments]
    output = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, timeout=300, cwd=ROOT
    )
    return json.loads(output.stdout.splitlines()[-1])


if __name__ == "__main__":
    folder, *what = sys.argv[1:]
    if not what:
        result = compare(folder)
    elif what[0] == "memory":
        result = peak_above_model(what[1], folder)
    elif what[0] == "decode":
        result = decode_milliseconds(folder, int(what[1]))
    else:
        result = seconds(folder, int(what[1]))
    print(json.dumps(result))
