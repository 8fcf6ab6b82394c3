"""The way of weights from a mapped file to a GPU: through two buffers of pinned memory.

A copy from ordinary memory waits for the processor, which pins page by page. From pinned memory the
GPU fetches on its own: while it fetches one part, the next is copied into the other buffer.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from l4kernels.layers.weights.memory import lies_transposed

SIZE = 32 << 20
"""Bytes of a buffer: what `Linear.store` uploads at a time has 16 MB at most."""


class Staging:
    """Copies tensors of the host to a device. The results are ready for the current stream.

    Args:
        device: where to.
        size: bytes of each of the two buffers; what is larger goes in pieces.
        cuda: `torch.cuda`, or what stands for it.
        pinned: makes a buffer.
    """

    def __init__(
        self, device: torch.device, size: int = SIZE, cuda: Any = torch.cuda, pinned: Any = None
    ):
        make = pinned or (lambda n: torch.empty(n, dtype=torch.uint8, pin_memory=True))
        self.device, self.size, self.cuda = device, size, cuda
        self.stream = cuda.Stream(device)
        self.slots = [(make(size), cuda.Event()) for _ in range(2)]
        self.turn = 0

    def __call__(self, source: Tensor) -> Tensor:
        """A tensor on the device. What lies transposed still does: a GPU turns it faster."""
        if lies_transposed(source):
            return self(source.t()).t()
        with self.cuda.stream(self.stream):
            result = torch.empty(source.shape, dtype=source.dtype, device=self.device)
        for part, place in _pieces(source, result, self.size):
            self._copy(part, place)
        current = self.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        # It is the side stream's memory: not to be given away before this stream is done with it.
        result.record_stream(current)
        return result

    def _copy(self, source: Tensor, target: Tensor) -> None:
        buffer, fetched = self.slots[self.turn]
        self.turn = 1 - self.turn
        fetched.synchronize()  # what was in the buffer is on the device
        staged = buffer[: source.nbytes].view(source.dtype).view(source.shape)
        staged.copy_(source)
        with self.cuda.stream(self.stream):
            target.copy_(staged, non_blocking=True)
            fetched.record(self.stream)

    def close(self) -> None:
        """Waits until nothing reads the buffers."""
        for _, fetched in self.slots:
            fetched.synchronize()


class ToDevice:
    """Of the same form, where there is nothing to stage."""

    def __init__(self, device: torch.device):
        self.device = device

    def __call__(self, source: Tensor) -> Tensor:
        return source.to(self.device)


Upload = Staging | ToDevice


@contextlib.contextmanager
def uploading(device: torch.device) -> Iterator[Upload]:
    """What brings weights to a device for as long as a model is loaded."""
    if device.type != "cuda":
        yield ToDevice(device)
        return
    staging = Staging(device)
    try:
        yield staging
    finally:
        staging.close()


def _pieces(source: Tensor, target: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of parts of at most `size` bytes."""
    if source.nbytes <= size:
        if source.numel():
            yield source, target
        return
    if source.shape[0] == 1:
        yield from _pieces(source[0], target[0], size)
        return
    half = source.shape[0] // 2
    yield from _pieces(source[:half], target[:half], size)
    yield from _pieces(source[half:], target[half:], size)
