"""What a caller is told of an op before it runs: signature, types, and that it has no gradient."""

import copy
import inspect
import pickle
import pydoc
import types
import typing
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import l4kernels
from bench.checks.cases import cases
from bench.checks.inputs import FP8, Case
from l4kernels import ops

PACKAGE = Path(l4kernels.__file__).parent
DROPINS = [getattr(l4kernels.dropin, name) for name in l4kernels.dropin.__all__]
METHODS = [
    member
    for public in (l4kernels.Llama4, l4kernels.Prompter)
    for name, member in vars(public).items()
    if inspect.isfunction(member) and not name.startswith("_")
]


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").exists()
    assert '"l4kernels": ["py.typed"]' in (PACKAGE.parent / "setup.py").read_text()


@pytest.mark.parametrize("name", ops.OPS)
def test_signature_and_help_are_the_ops_own(name):
    op = ops.OPS[name]
    shown = inspect.signature(op)
    own = dict(shown.parameters)
    assert ("out" in own) == op.has_out
    own.pop("out", None)
    assert own == dict(inspect.signature(op.body).parameters)
    text = pydoc.render_doc(op, renderer=pydoc.plaintext)
    assert f"{name}(" in text and op.__doc__.splitlines()[0] in text
    assert all(parameter in text for parameter in shown.parameters)
    case = cases(name)[0].copy()
    assert isinstance(op(*case.args, **case.kwargs), shown.return_annotation or types.NoneType)


@pytest.mark.parametrize("function", [*ops.OPS.values(), *DROPINS, *METHODS])
def test_every_argument_and_result_has_a_type(function):
    signature = inspect.signature(function)
    hints = typing.get_type_hints(getattr(function, "body", function))
    names = [n for n in signature.parameters if n not in ("self", "out")]
    assert {*names, "return"} <= set(hints)


@pytest.mark.parametrize("name", ops.OPS)
def test_a_copy_of_an_op_is_the_op(name):
    """In a module that is copied, or sent to another process."""
    op = ops.OPS[name]
    for copied in (copy.copy(op), copy.deepcopy([op])[0], pickle.loads(pickle.dumps(op))):
        assert copied is op


def with_gradient(case: Case) -> typing.Iterator[Case]:
    """The case with one of its tensors requiring a gradient, for each that can."""
    for i, value in enumerate(case.args):
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != FP8:
            yield Case("", (*case.args[:i], of_a_graph(value), *case.args[i + 1 :]), case.kwargs)
    for name, value in case.kwargs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            yield Case("", case.args, {**case.kwargs, name: of_a_graph(value)})


def of_a_graph(value: Tensor) -> Tensor:
    return value.clone().requires_grad_() * 1


@pytest.mark.parametrize("name", ops.OPS)
def test_a_gradient_is_refused_by_name(name):
    op = ops.OPS[name]
    for case in cases(name, dtype=torch.float32)[-2:]:
        for asked in with_gradient(case.copy()):
            for call in (op, op.reference, op.overload, on_fake_tensors(op)):
                with pytest.raises(RuntimeError, match=f"l4kernels.{name} is for inference only"):
                    call(*asked.args, **asked.kwargs)
            if any(a.name == "k_cache" and a.alias_info for a in op.overload._schema.arguments):
                continue  # written in place: no_grad would let it, but not into a graph's tensor
            with torch.no_grad():
                result = op(*asked.args, **asked.kwargs)
            results = (result,) if isinstance(result, Tensor) else result
            assert not any(t.requires_grad for t in results)


def on_fake_tensors(op: ops.Op) -> typing.Callable[..., typing.Any]:
    def call(*args, **kwargs):
        with torch._subclasses.FakeTensorMode() as mode:
            own = [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in args]
            named = {
                k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in kwargs.items()
            }
            return op(*own, **named)

    return call


def test_gradients_of_other_kinds_are_refused_too():
    x, weight = torch.ones(2, 4), torch.ones(4)
    message = "l4kernels.rms_norm is for inference only"
    with pytest.raises(RuntimeError, match=message):
        torch.func.grad(lambda x: ops.rms_norm(x, weight).sum())(x)
    with pytest.raises(RuntimeError, match=message):
        torch.func.jvp(lambda x: ops.rms_norm(x, weight), (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=message):
        ops.rms_norm(forward_ad.make_dual(x, x), weight)
    with forward_ad.dual_level():
        ops.rms_norm(x, weight)
    with pytest.raises(RuntimeError, match=message):
        torch.compile(ops.rms_norm, backend="eager")(x.requires_grad_(), weight)
    with pytest.raises(RuntimeError, match=r"l4kernels.flash_decode is for inference only"):
        q = torch.ones(1, 1, 1, 4, requires_grad=True)
        l4kernels.flash_attn_with_kvcache(q, *torch.ones(2, 1, 16, 1, 4))


@pytest.mark.skipif(not l4kernels.STATUS.loaded, reason="no compiled kernels: run `make build`")
def test_a_kernel_refuses_a_gradient_like_its_reference():
    from l4kernels.testing import emulated

    x = torch.ones(2, 128, dtype=torch.bfloat16, requires_grad=True)
    with emulated(), pytest.raises(RuntimeError, match=r"silu_mul is for inference only"):
        ops.silu_mul(x)
