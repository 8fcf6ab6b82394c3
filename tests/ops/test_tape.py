"""A captured step does what the step does, and says what cannot be captured."""

import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import l4kernels
from l4kernels import Llama4Config, ops
from l4kernels.layers.attention import AttentionMetadata, LayerCache
from l4kernels.layers.options import ModelOptions
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops.tape import capture

MODEL = {
    "vocab_size": 64, "hidden_size": 32, "head_dim": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 4, "interleave_moe_layer_step": 2,
    "num_local_experts": 4, "intermediate_size": 16, "intermediate_size_mlp": 32,
    "attention_chunk_size": 16, "max_position_embeddings": 64, "rope_theta": 1e4,
}  # fmt: skip


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Mixed:
    """Views of what stays and of what is made, lists, calls in place, several results, `out`."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x, self.residual, self.matrix = (
            torch.randn(size, generator=generator) for size in ((4, 16), (4, 16), (32, 16))
        )
        self.weight, self.out = torch.ones(16), torch.zeros(4, 32)

    def step(self) -> None:
        y, total = ops.add_rms_norm(self.x, self.residual, self.weight, 1e-3)
        self.residual.copy_(total)
        y[:2].mul_(self.x[2:])
        both = torch.cat([y, self.x[:2], total.view(2, 32)[:, 16:]])
        ops.gemm(both[:4], self.matrix, activation="gelu", out=self.out)
        first, _ = self.out.split([16, 16], 1)
        self.x.add_(ops.gemm(both, self.matrix[:16])[3:7], alpha=0.5).sub_(first.amax(1)[:, None])

    def state(self) -> list[Tensor]:
        return [t.clone() for t in (self.x, self.residual, self.out)]


def test_a_program_leaves_what_the_step_leaves():
    plain, captured = Mixed(), Mixed()
    plain.step()
    again = capture(captured.step)
    for round_ in range(4):
        for mine, theirs in zip(captured.state(), plain.state(), strict=True):
            assert torch.equal(mine, theirs)
        for mixed, run in ((plain, plain.step), (captured, again)):
            mixed.weight.fill_(round_ + 1.0)
            run()


def decoding(run):
    """64 greedy tokens of a random model, over three borders of a chunk."""
    torch.manual_seed(1)
    config = Llama4Config.from_dict(MODEL)
    model = Llama4Model(config, ModelOptions(torch.float32, torch.device("cpu")))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    ids, positions, slots = torch.tensor([[1], [0], [0]])
    lengths, table, row = torch.ones(1).int(), torch.tensor([[0]]).int(), torch.tensor([0, 1]).int()
    metadata = [AttentionMetadata(positions, slots, row, lengths, table, 1)] * 4
    caches = [LayerCache(*torch.zeros(2, 1, 64, 2, 8)) for _ in range(4)]

    def step() -> None:
        logits = model.compute_logits(model(ids, metadata, caches))
        ids.copy_((logits.argmax(-1) + positions) % 64)  # else a random model repeats itself
        for counter in (positions, slots, lengths):
            counter.add_(1)

    tokens, again = [], run(step)
    for _ in range(63):
        tokens.append(int(ids))
        again()
    return tokens, caches


def test_a_model_decodes_the_same_tokens():
    def plain(step):
        step()
        return step

    with torch.inference_mode():
        (tokens, caches), (wanted, expected) = decoding(capture), decoding(plain)
    assert tokens == wanted and len(set(tokens)) > 20
    for mine, theirs in zip(caches, expected, strict=True):
        assert torch.equal(mine.k, theirs.k) and torch.equal(mine.v, theirs.v)


def test_what_nobody_reads_any_more_is_let_go(monkeypatch):
    inputs, body = [], ops.silu_mul.body

    def watched(x):
        inputs.append(weakref.ref(x))
        alive.append(sum(t() is not None for t in inputs))
        return body(x)

    x, out = torch.ones(1, 64), torch.zeros(1, 8)
    alive: list[int] = []
    monkeypatch.setattr(ops.silu_mul, "body", watched)
    again = capture(lambda: out.copy_(ops.silu_mul(ops.silu_mul(ops.silu_mul(x + 1) + 1) + 1)))
    alive.clear()
    again()
    assert alive == [1, 1, 1]


@pytest.mark.parametrize(
    "read",
    [Tensor.item, Tensor.tolist, Tensor.nonzero, bool, lambda t: torch.ones(1)[t.bool()]],
    ids=["item", "tolist", "nonzero", "bool", "mask"],
)
def test_values_on_the_host_are_refused(read):
    x = torch.ones(1)
    with pytest.raises(RuntimeError, match="capture: expected a step that leaves values where"):
        capture(lambda: read(x.add_(1)))
    assert x.item() == 2  # and the mode has ended


def test_an_index_of_numbers_is_no_such_value():
    x, index = torch.arange(3.0), torch.tensor([2, 0])
    again = capture(lambda: x[:2].copy_(x[index]))
    index.copy_(torch.tensor([1, 1]))
    again()
    assert x.tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    "watching",
    [
        l4kernels.reference,
        Passing,
        torch.profiler.profile,
        lambda: torch.autocast("cpu", torch.bfloat16),
    ],
    ids=["reference", "mode", "profiler", "autocast"],
)
@pytest.mark.parametrize("at", ["capture", "run"])
def test_the_step_itself_runs_while_something_looks_on(watching, at):
    x, runs = torch.ones(1, 4), []

    def step() -> None:
        runs.append(x.add_(ops.rms_norm(x, x[0])))

    if at == "run":
        again = capture(step)
        with watching():
            again()
        assert len(runs) == 2
        again()
        assert len(runs) == 2
        return
    with watching():
        again = capture(step)
    again()
    assert len(runs) == 2


def test_an_error_of_an_op_comes_through_and_the_next_run_is_good():
    ids, table, out = torch.tensor([1]), torch.tensor([[1.0], [2.0]]), torch.zeros(1, 1)
    again = capture(lambda: out.copy_(ops.embed(ids, table)))
    for wrong in (2, -1):
        ids.fill_(wrong)
        with pytest.raises(IndexError, match=r"l4kernels\.embed: expected every value"):
            again()
    ids.fill_(0)
    again()
    assert out.item() == 1
