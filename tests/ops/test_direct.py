"""Calls that go straight to an op's body: who takes part in calls still does."""

import warnings

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from l4kernels import ops
from l4kernels.ops.ambient import observed

X, WEIGHT = torch.randn(2, 4), torch.ones(4)
SCHEMA = "l4kernels::rms_norm"


@pytest.fixture(autouse=True)
def _a_known_layout():
    ops.rms_norm(X, WEIGHT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops.rms_norm, "_kernel_of", lambda *_: pytest.fail("not straight"))
        patch.setattr(ops.rms_norm, "_last_form", (None, None))
        ops.rms_norm(X, WEIGHT)


def test_modes_see_an_op():
    seen = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    for mode in (Calls, Functions):
        with mode():
            ops.rms_norm(X, WEIGHT)
        assert torch.ops.l4kernels.rms_norm.default in seen
        seen.clear()


def test_a_profiler_and_a_trace_see_an_op():
    with torch.profiler.profile() as profile:
        ops.rms_norm(X, WEIGHT)
    assert SCHEMA in {event.key for event in profile.key_averages()}
    traced = torch.jit.trace(lambda x: ops.rms_norm(x, WEIGHT), X)
    assert SCHEMA in str(traced.graph)


def test_a_transform_of_functorch_sees_an_op():
    seen = []
    torch.vmap(lambda x: (seen.append(observed()), x)[1])(X)
    assert seen == [True] and not observed()


def test_gradients_are_refused():
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="is for inference only"):
        ops.rms_norm(x, WEIGHT)
    with torch.no_grad():
        ops.rms_norm(x, WEIGHT)


def test_an_equal_value_of_another_type_is_another_layout():
    ops.moe_route(X, 1)
    with pytest.raises(TypeError, match="expected top_k to be an int, got True"):
        ops.moe_route(X, True)
    assert torch.equal(ops.rms_norm(X, WEIGHT, np.float64(1e-5)), ops.rms_norm(X, WEIGHT))


@pytest.mark.filterwarnings("ignore")
def test_tensors_without_strides_are_refused_after_good_ones():
    for wrong in (X.to_sparse(), torch.nested.nested_tensor([X[0], X[1][:2]])):
        with pytest.raises(TypeError, match="expected x to be a dense tensor"):
            ops.rms_norm(wrong, WEIGHT)


def test_a_kernel_that_replaces_the_body_is_called_when_asked_for(monkeypatch):
    library = torch.library.Library("l4kernels", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl("rms_norm", lambda x, *_: x + 1, "CPU", allow_override=True)
    try:
        monkeypatch.setattr(ops.registry.Op, "direct", False)
        assert torch.equal(ops.rms_norm(X, WEIGHT), X + 1)
    finally:
        library._destroy()
