"""How weights come to their memory: turned by parts, in huge pages, through pinned buffers."""

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode

from l4kernels import Llama4
from l4kernels.demo import CHECKPOINT
from l4kernels.layers.weights import linear
from l4kernels.layers.weights.bf16 import Bf16Linear
from l4kernels.layers.weights.codes import Fp8Codes
from l4kernels.layers.weights.fp8 import Fp8Linear
from l4kernels.layers.weights.memory import large_empty, lies_transposed, rows_first
from l4kernels.layers.weights.staging import Staging, ToDevice, uploading

CPU = torch.device("cpu")


class Stream(TorchFunctionMode):
    """Copies that were asked for wait until somebody waits for them."""

    def __init__(self, *_):
        super().__init__()
        self.queue, self.events = [], set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("non_blocking"):
            self.queue.append(lambda: args[0].copy_(args[1]))
            return args[0]
        return function(*args, **kwargs)

    def run(self, count):
        todo, self.queue = self.queue[:count], self.queue[count:]
        for copy in todo:
            copy()
        return len(todo)


class Event:
    def __init__(self):
        self.left = None

    def record(self, stream):
        self.stream, self.left = stream, len(stream.queue)
        stream.events.add(self)

    def synchronize(self):
        if self.left:
            done = self.stream.run(self.left)
            for event in self.stream.events:
                event.left = max(0, event.left - done)


class Cuda:
    """What `Staging` asks of `torch.cuda`."""

    Event = Event

    def __init__(self):
        self.waits = 0

    def Stream(self, device):  # noqa: N802 (torch's name)
        self.side = Stream()
        return self.side

    def stream(self, stream):
        return stream

    def current_stream(self, device):
        return self

    def wait_stream(self, stream):
        self.waits += 1
        for event in stream.events:
            event.left = 0
        stream.run(len(stream.queue))


@pytest.fixture
def staging(monkeypatch):
    recorded = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, s: recorded.append(s))
    staging = Staging(CPU, 256, Cuda(), lambda n: torch.full((n,), 255, dtype=torch.uint8))
    staging.recorded = recorded
    return staging


@pytest.mark.parametrize("shape", [(1,), (3, 5), (7, 64), (128,), (129,), (1, 1000), (33, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8, torch.float64])
def test_what_is_staged_arrives(staging, shape, dtype):
    sources = [torch.rand(shape).mul(100).to(dtype) for _ in range(5)]
    results = [staging(source) for source in sources]
    assert all(map(torch.equal, results, sources))
    assert len(staging.recorded) == len(sources) == staging.cuda.waits


def test_a_buffer_waits_for_the_copy_that_reads_it(staging, monkeypatch):
    """Of a part in many pieces no piece is there before two are under way, and none is lost."""
    pending = []
    copy = Staging._copy
    monkeypatch.setattr(
        Staging, "_copy", lambda *a: (copy(*a), pending.append(len(staging.stream.queue)))[0]
    )
    source = torch.arange(1024, dtype=torch.int32)
    assert torch.equal(staging(source), source)
    assert pending == [1, *[2] * 15]
    monkeypatch.setattr(Event, "synchronize", lambda self: None)
    assert not torch.equal(staging(source), source), "the fake tells a buffer that came too early"


def test_what_lies_transposed_is_turned_by_the_device(staging):
    source = torch.rand(12, 40)[:, 3:29].t()
    got = staging(source)
    assert lies_transposed(got) and torch.equal(got, source)


def test_after_an_error_the_buffers_are_free(staging):
    class Broken(torch.Tensor):
        nbytes = property(lambda self: 1 / 0)

    list(map(staging, [torch.ones(4), torch.ones(4)]))
    staging._copy(torch.ones(3), torch.empty(3))
    with pytest.raises(ZeroDivisionError), contextlib.closing(staging):
        staging(torch.ones(3).as_subclass(Broken))
    assert not staging.stream.queue
    assert torch.equal(staging(torch.ones(200)), torch.ones(200))


@pytest.mark.parametrize("weights", ["bf16", "fp8"])
def test_a_model_through_buffers_is_the_same(staging, monkeypatch, weights):
    want = Llama4.from_pretrained(CHECKPOINT, weights=weights)
    staging.size = 4096
    staging.slots = [(torch.empty(4096, dtype=torch.uint8), event) for _, event in staging.slots]
    monkeypatch.setattr(
        "l4kernels.checkpoint.load.uploading", lambda device: contextlib.nullcontext(staging)
    )
    got = Llama4.from_pretrained(CHECKPOINT, weights=weights)
    assert staging.cuda.waits > 10
    for (name, a), b in zip(want.named_parameters(), got.parameters(), strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), name


def test_on_a_cpu_nothing_is_staged():
    with uploading(CPU) as upload:
        source = torch.ones(3)
        assert isinstance(upload, ToDevice) and upload(source) is source


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 64), (800, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_rows_come_first(shape, dtype):
    stored = torch.rand(shape[1], shape[0] + 3).to(dtype)
    weight = stored[:, 2 : 2 + shape[0]].t()
    got = rows_first(weight)
    assert torch.equal(got.float(), weight.float()) and got.is_contiguous() and got.dtype == dtype
    rows = weight.contiguous()
    assert rows_first(rows) is rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int32])
def test_large_memory_is_that_of_any_tensor(dtype, monkeypatch):
    for shape in ((3, 5), (3, 1 << 10, 1 << 11)):
        made = large_empty(*shape, dtype=dtype, device=CPU)
        assert made.shape == shape and made.dtype == dtype and made.is_contiguous()
        made.zero_()
    assert made.untyped_storage().nbytes() == made.nbytes
    monkeypatch.setattr("mmap.mmap", lambda *a, **k: (_ for _ in ()).throw(OSError("none")))
    assert large_empty(3, 1 << 10, 1 << 11, dtype=dtype, device=CPU).shape == made.shape


def test_parts_of_what_lies_transposed_fit_a_cache(monkeypatch):
    monkeypatch.setattr(linear, "TURNED", 1 << 10)
    monkeypatch.setattr(linear, "_MIN_PART", 1 << 12)
    sizes = []
    monkeypatch.setattr(
        linear, "rows_first", lambda t: (sizes.append(t.numel()), t.contiguous())[1]
    )
    layer = Bf16Linear(64, 256, dtype=torch.float32, device=CPU)
    weight = torch.rand(64, 256)
    layer.store(weight.t())
    assert torch.equal(layer.weight, weight.t()) and max(sizes) == 1 << 10
    sizes.clear()
    layer.store(weight.t().contiguous())
    assert torch.equal(layer.weight, weight.t()) and max(sizes) == 1 << 12
    sizes.clear()
    codes = Fp8Codes(weight.to(torch.float8_e4m3fn).t(), torch.ones(256))
    layer = Fp8Linear(64, 256, dtype=torch.float32, device=CPU)
    layer.store(codes)
    assert torch.equal(layer.weight.float(), codes.q.float()) and max(sizes) == 1 << 10
