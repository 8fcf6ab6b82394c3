"""Every op under torch's compilers: torch.compile, torch.export and make_fx see one operator."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bench.checks.cases import cases
from bench.checks.kernel_checks import tensors
from l4kernels import ops

WITH_OUT = [name for name, op in ops.OPS.items() if op.has_out]
FORMS = [(name, False) for name in ops.OPS] + [(name, True) for name in WITH_OUT]
each_form = pytest.mark.parametrize(("name", "out"), FORMS)


class Program(torch.nn.Module):
    """The tensors of a case in, all that the op returns out, with a product after it."""

    def __init__(self, name: str, out: bool):
        super().__init__()
        self.op = ops.OPS[name]
        found = cases(name, dtype=torch.float32)
        self.case = next(c for c in found[1:] or found if c.args[0].numel()).copy()
        if out:
            wanted = self.op(*self.case.args, **self.case.kwargs)
            self.case.kwargs["out"] = torch.full_like(wanted, float("nan"))
        values = [*self.case.args, *self.case.kwargs.values()]
        self.tensors = tuple(v for v in values if isinstance(v, Tensor))

    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(t.clone() for t in self.tensors)

    def forward(self, *inputs: Tensor) -> tuple[Any, ...]:
        given = iter(inputs)
        args = [next(given) if isinstance(v, Tensor) else v for v in self.case.args]
        kwargs = {
            k: next(given) if isinstance(v, Tensor) else v for k, v in self.case.kwargs.items()
        }
        results = tensors(self.op(*args, **kwargs))
        return *results, *(result.float() * 2 for result in results[:1])


@pytest.fixture(autouse=True)
def _no_graph_of_another_test():
    """All of them compile one piece of code, which has a limit."""
    torch._dynamo.reset()


def same(got: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert torch.equal(bits(a), bits(b))


def bits(t: Tensor) -> Tensor:
    return t.contiguous().flatten().view(torch.uint8)


def check(run: Any, program: Program) -> None:
    """Equal results, and the same left in what the op writes into."""
    mine, theirs = program.inputs(), program.inputs()
    same(run(*mine), program(*theirs))
    same(mine, theirs)


@each_form
def test_compiles_in_one_graph(name, out):
    program = Program(name, out)
    check(torch.compile(program, fullgraph=True, backend="aot_eager"), program)


NAMED = [name for name, op in ops.OPS.items() if op.returns is not None]


@pytest.mark.parametrize("name", NAMED)
def test_names_of_results_stay(name):
    program = Program(name, out=False)
    case = program.case.copy()
    result = torch.compile(program.op, fullgraph=True, backend="eager")(*case.args, **case.kwargs)
    assert type(result) is program.op.returns


def test_a_wrong_out_is_refused_while_it_compiles():
    compiled = torch.compile(lambda a, out: ops.gemm(a, a, out=out), backend="aot_eager")
    with pytest.raises(Exception, match=r"expected out to be \[2, 2\] float32 .*, got \[2, 3\]"):
        compiled(torch.ones(2, 4), torch.ones(2, 3))


@each_form
def test_exports(name, out):
    program = Program(name, out)
    exported = torch.export.export(program, program.inputs(), strict=False)
    called = {str(node.target) for node in exported.graph.nodes}
    assert any(f"l4kernels.{name}" in target for target in called)
    check(exported.module(), program)


@pytest.mark.parametrize(
    ("name", "out"), [(n, o) for n, o in FORMS if o or n in ("rope_cache", "moe_route", "embed")]
)
def test_traces(name, out):
    program = Program(name, out)
    traced = make_fx(program, tracing_mode="fake")(*program.inputs())
    called = {str(node.target) for node in traced.graph.nodes}
    assert f"l4kernels.{name}.{'out' if out else 'default'}" in called
    check(traced, program)


@pytest.mark.parametrize("name", WITH_OUT)
def test_the_out_form_gives_out_itself(name):
    program = Program(name, out=True)
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    check(compiled, program)
    inputs = program.inputs()
    result = compiled(*inputs)[0]
    assert result.data_ptr() == inputs[-1].data_ptr()


@pytest.mark.parametrize("name", WITH_OUT)
def test_inductor_takes_an_op_that_has_an_out_form(name):
    """The default backend looks for out forms itself. Nothing here is left for a C++ compiler."""
    program = Program(name, out=False)
    compiled = torch.compile(lambda *tensors: program(*tensors)[0], fullgraph=True)
    with torch.compiler.config.patch(force_disable_caches=True):
        same([compiled(*program.inputs())], program(*program.inputs())[:1])
