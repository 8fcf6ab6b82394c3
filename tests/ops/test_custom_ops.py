"""Ops that are declared elsewhere: whatever a schema of torch can say."""

from collections.abc import Sequence
from typing import Optional, Union

import pytest
import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.ops.registry import Work, op

PARTS = {"check": lambda args: None, "work": lambda args: Work(0, 0)}
X = torch.ones(2)


def sum_of(tensors):
    return torch.stack(list(tensors)).sum(0)


def test_types_of_torch_schemas(monkeypatch):
    monkeypatch.setattr(ops.registry, "OPS", {})

    @op(**PARTS)
    def test_optional(x: Tensor, y: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
        return x.clone() if y is None else x + y

    @op(**PARTS)
    def test_lists(x: Sequence[Tensor], n: list[int], names: str = "") -> Tensor:
        return sum_of(x) + sum(n)

    @op(**PARTS)
    def test_some(x: list[Tensor | None]) -> Tensor:
        return sum_of(t for t in x if t is not None)

    @op(**PARTS)
    def test_device(x: Tensor, device: torch.device) -> Tensor:
        return x.to(device, copy=True)

    @op(**PARTS)
    def test_number(x: Tensor, by: Union[int, float, bool]) -> Tensor:  # noqa: UP007
        return x * by

    @op(mutates=("x",), **PARTS)
    def test_in_place(x: list[Tensor]) -> None:
        for t in x:
            t.add_(1)

    assert test_optional(X).tolist() == [1, 1] and test_optional(X, y=X).tolist() == [2, 2]
    for n in ([1, 2], [1, 3], [], [5]):
        assert test_lists([X, X], n).tolist() == [2 + sum(n)] * 2
        assert test_lists.reference((X,), n).tolist() == [1 + sum(n)] * 2
    assert test_some([X, None, X]).tolist() == [2, 2]
    assert torch.equal(test_device(X, torch.device("cpu")), X)
    assert test_number(X, 2.5).tolist() == [2.5, 2.5] and test_number(X, 2).tolist() == [2, 2]
    grown = torch.zeros(2)
    test_in_place([grown])
    assert grown.tolist() == [1, 1]
    with pytest.raises(TypeError, match="expected y to be a Tensor or None, got 3"):
        test_optional(X, 3)
    needy = torch.ones(2, requires_grad=True)
    for call in (test_lists, test_lists.reference):
        with pytest.raises(RuntimeError, match="test_lists is for inference only"):
            call([X, needy], [1])
        with pytest.raises(TypeError, match=r"expected x\[1\] to be a dense tensor, got a sparse"):
            call([X, X.to_sparse()], [1])
        with pytest.raises(ValueError, match=r"one device, got x\[0\] on cpu, x\[1\] on meta"):
            call([X, X.to("meta")], [1])


def test_a_check_sees_every_layout_of_a_list(monkeypatch):
    monkeypatch.setattr(ops.registry, "OPS", {})

    def check(args):
        if any(t.shape != args.x[0].shape for t in args.x):
            raise ValueError("expected one shape")

    @op(check=check, work=PARTS["work"], out=True)
    def test_shapes(x: Sequence[Tensor], n: list[int]) -> Tensor:
        return sum_of(x)

    wide = torch.ones(3)
    for _ in range(2):
        assert test_shapes([X, X], [1]).tolist() == [2, 2]
        assert test_shapes([wide, wide], [1]).tolist() == [2, 2, 2]
        for wrong in ([X, wide], [wide, X], [X, X, wide]):
            with pytest.raises(ValueError, match="expected one shape"):
                test_shapes(wrong, [1])
    with pytest.raises(ValueError, match="share no memory with an input"):
        test_shapes([X.clone(), X], [1], out=X)
