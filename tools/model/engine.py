"""A discrete-event model of a few SMs: an event queue, and the units that kernels wait for.

A process is a generator. It yields a time to sleep until, or (gate, value) to wait until the gate
has counted so far. Time is in SM cycles. A unit that serves one request after the other is a
Server; it keeps the time at which it is free and needs no events of its own.
"""

import heapq
from collections import deque
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

Process = Generator[Any, None, None]
Targets = list[tuple["SM", "Gate"]]
CHUNK = 4096  # bytes: what a copy engine asks for at a time


class Engine:
    def __init__(self) -> None:
        self.now = 0.0
        self.pending: list[tuple[float, int, Callable[..., None], Any]] = []
        self.count = 0

    def at(self, time: float, action: Callable[..., None], argument: Any) -> None:
        self.count += 1
        heapq.heappush(self.pending, (time, self.count, action, argument))

    def start(self, process: Process, time: float = 0.0) -> None:
        self.at(time, self.resume, process)

    def resume(self, process: Process) -> None:
        """Runs a process until it has to wait."""
        for wanted in process:
            if isinstance(wanted, tuple):
                gate, value = wanted
                if gate.value < value:
                    gate.waiters.append((value, process))
                    return
            elif wanted > self.now:
                self.at(wanted, self.resume, process)
                return

    def run(self) -> None:
        while self.pending:
            self.now, _, action, argument = heapq.heappop(self.pending)
            action(argument)


class Gate:
    """A count that only grows: an mbarrier's phases, finished wgmma, turns."""

    def __init__(self, engine: Engine, wake: float = 0.0):
        self.engine, self.wake, self.value = engine, wake, 0
        self.waiters: list[tuple[int, Process]] = []

    def add(self, amount: int = 1) -> None:
        self.value += amount
        ready = [p for value, p in self.waiters if value <= self.value]
        if ready:
            self.waiters = [w for w in self.waiters if w[0] > self.value]
            for process in ready:
                self.engine.start(process, self.engine.now + self.wake)


class Server:
    def __init__(self, rate: float = 1.0):
        self.rate, self.free = rate, 0.0

    def take(self, now: float, amount: float) -> float:
        """The time at which the request is served."""
        self.free = (now if now > self.free else self.free) + amount / self.rate
        return self.free


class Machine(SimpleNamespace):
    """The names of constants.toml in cycles and bytes of one SM; rates.machine() makes one."""


def memory(machine: Machine, sms: int, active: int) -> tuple[Server, Server]:
    """L2 and DRAM as `sms` simulated SMs of the `active` ones see them."""
    share = sms * machine.sms / max(1, min(active, machine.sms))
    return Server(machine.l2_rate * share), Server(machine.dram_rate * share)


class SM:
    def __init__(self, engine: Engine, machine: Machine, shared_by_all: tuple[Server, Server]):
        self.engine, self.machine = engine, machine
        self.l2, self.dram = shared_by_all
        self.shared, self.port = Server(machine.shared_rate), Server(machine.port_rate)
        self.stores, self.mufu, self.alu = Server(machine.store_rate), Server(), Server()
        self.issue = Server()  # slots of a scheduler, of which one stands for four
        self.tensor = TensorCore(engine, self.shared)
        self.queue: deque[tuple[float, float, Targets]] = deque()
        self.pumping = False

    def load(self, size: float, miss: float, targets: Targets) -> None:
        """A box for one or more SMs; every gate counts one when the box has landed there.

        DRAM delivers the part `miss` of it, the rest has been fetched for another SM.
        """
        self.queue.append((size, miss, targets))
        if not self.pumping:
            self.pumping = True
            self.engine.start(self._pump(), self.engine.now)

    def _pump(self) -> Process:
        """The copy engine: asks L2 for a chunk as often as the SM's port could take one."""
        engine, machine = self.engine, self.machine
        while self.queue:
            left, miss, targets = self.queue.popleft()
            late = 1.0 if miss >= 1 else machine.follower if miss > 0 else 0.0
            latency = machine.l2_latency + late * (machine.dram_latency - machine.l2_latency)
            while left > 0:
                size = min(CHUNK, left)
                left -= size
                end = self.l2.take(engine.now, size)
                if miss > 0:
                    end = max(end, self.dram.take(engine.now, size * miss))
                engine.at(end + latency, self._land, (targets, size, left == 0))
                yield engine.now + size / machine.port_rate
        self.pumping = False

    def _land(self, arrival: tuple[Targets, float, bool]) -> None:
        targets, size, last = arrival
        for sm, gate in targets:
            end = max(sm.port.take(self.engine.now, size), sm.shared.take(self.engine.now, size))
            if last:
                self.engine.at(end, gate.add, 1)


class TensorCore:
    """One wgmma at a time, warpgroups in turn; operands come over shared memory's port."""

    def __init__(self, engine: Engine, shared: Server):
        self.engine, self.shared = engine, shared
        self.warpgroups: list[Warpgroup] = []
        self.busy, self.turn = False, 0

    def next(self) -> None:
        count = len(self.warpgroups)
        for i in range(count):
            warpgroup = self.warpgroups[(self.turn + i) % count]
            if warpgroup.queue:
                self.turn = (self.turn + i + 1) % count
                cycles, operands = warpgroup.queue.popleft()
                now = self.engine.now
                end = max(now + cycles, self.shared.take(now, operands))
                self.busy = True
                self.engine.at(end, self.finish, warpgroup)
                return
        self.busy = False

    def finish(self, warpgroup: "Warpgroup") -> None:
        self.next()
        warpgroup.done.add()


class Warpgroup:
    """Issues wgmma in order; its warps stall when `run_ahead` of them are not finished."""

    def __init__(self, sm: SM):
        self.sm, self.machine = sm, sm.machine
        self.queue: deque[tuple[float, float]] = deque()
        self.done, self.issued = Gate(sm.engine), 0
        sm.tensor.warpgroups.append(self)

    def multiply(self, n: int, steps: int, from_registers: bool = False) -> Process:
        """`steps` wgmma of 64 x n x 32 bytes."""
        operands = 32 * n + (0 if from_registers else 2048)
        for _ in range(steps):
            yield self.done, self.issued + 1 - self.machine.run_ahead
            self.issued += 1
            self.queue.append((n / 2, operands))
            if not self.sm.tensor.busy:
                self.sm.tensor.next()

    def wait(self, outstanding: int = 0) -> Process:
        yield self.done, self.issued - outstanding
        yield self.sm.engine.now + self.machine.group_wait


class Ring:
    """What the processes of a CTA share: stages that are filled and released, warpgroups."""

    def __init__(self, sm: SM, stages: int, warpgroups: int):
        engine, self.machine = sm.engine, sm.machine
        self.sm, self.engine, self.stages = sm, engine, stages
        self.full = [Gate(engine, sm.machine.barrier_wake) for _ in range(stages)]
        self.empty = [Gate(engine, sm.machine.barrier_wake) for _ in range(stages)]
        self.warpgroups = [Warpgroup(sm) for _ in range(warpgroups)]
        self.ends: list[float] = []  # of tiles or items
