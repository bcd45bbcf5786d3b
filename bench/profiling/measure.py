"""Calls measured by turns: wall time, floating-point operations, peak memory."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.environment import torch_device
from bench.predict import autocast

FORWARD, TRAINING = "forward", "forward+backward"
PLAIN, FAST = "plain", "fast"


@dataclass(frozen=True)
class Row:
    """One line of profile.csv.

    tokens: of the finest grid that cross-attention reads; sampling: N / N_v; prompts: on one image; gflop: counted by
    torch (matrix products and convolutions, a multiplication and an addition are two); seconds: median; peak_mib:
    resident memory at the peak of a call above the level before it (on a GPU: allocated memory).
    """

    scope: str
    method: str
    path: str
    image_size: int | None
    tokens: int
    queries: int | None
    sampling: float | None
    prompts: int
    phase: str
    dtype: str
    threads: int
    gflop: float
    seconds: float
    peak_mib: float | None


@dataclass(frozen=True)
class Outcome:
    """A bar that is no ratio of two rows. Of those with an image size the ones at the largest are told."""

    image_size: int | None
    work: str
    bar: str
    measured: str
    reached: bool


@dataclass
class Result:
    """What a case found; `notes` are lines for the reader."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """What is measured by turns and so can be compared; `expected` is a guess of the seconds it takes on two cores."""

    title: str
    expected: float
    run: Callable[[], Result]


@dataclass(frozen=True)
class Way:
    """One way of doing the work of a case; `call` does it once. `every`: it has its turn in every n-th round only."""

    method: str
    path: str
    call: Callable[[], object]
    queries: int | None = None
    samplings: tuple[float | None, ...] = (None,)  # several where the work does not depend on it: a row for each
    prompts: int = 1
    every: int = 1


@dataclass(frozen=True)
class Measurement:
    """One way's: `seconds` of every call that was timed."""

    gflop: float
    seconds: list[float]
    peak_mib: float | None


@dataclass(frozen=True)
class Pace:
    """How often a case goes round: at least `rounds`, at most `most`, in between as long as `seconds` are not over."""

    rounds: int
    most: int
    seconds: float


FULL_PACE, QUICK_PACE = Pace(3, 15, 2.0), Pace(2, 5, 1.0)
TURN = 0.05  # seconds; a quicker call is made again until they are over, so that it is not told by two or three calls


def measure(ways: Sequence[Way], pace: Pace, threads: int) -> list[Measurement]:
    """Each way once to count, once for its memory (both unmeasured: they warm up), then all by turns: A B C A B C."""
    with threads_set(threads):
        counted = [count_gflop(way.call) for way in ways]
        peaks = [peak_mib(way.call) for way in ways]
        seconds = by_turns(ways, pace)
    return [Measurement(*parts) for parts in zip(counted, seconds, peaks, strict=True)]


def by_turns(ways: Sequence[Way], pace: Pace, clock: Callable[[], float] = time.perf_counter) -> list[list[float]]:
    """Seconds of every call of every way: what slows the machine down for a while slows down all of them."""
    seconds: list[list[float]] = [[] for _ in ways]
    start = clock()
    gc.collect()
    gc.disable()
    try:
        for turn in range(pace.most):
            if turn >= pace.rounds and clock() - start >= pace.seconds:
                break
            for way, times in zip(ways, seconds, strict=True):
                if turn % way.every == 0:
                    times += _turn(way.call, clock)
    finally:
        gc.enable()
    return seconds


def _turn(call: Callable[[], object], clock: Callable[[], float]) -> list[float]:
    seconds: list[float] = []
    while not seconds or sum(seconds) < TURN:
        begin = clock()
        call()
        synchronise()
        seconds.append(clock() - begin)
    return seconds


def rows_of(way: Way, measured: Measurement, **where) -> list[Row]:
    """The rows of one way; `where` is what it shares with its case (scope, image_size, tokens, phase, dtype, ...)."""
    return [
        Row(
            method=way.method,
            path=way.path,
            queries=way.queries,
            sampling=sampling,
            prompts=way.prompts,
            gflop=measured.gflop,
            seconds=median(measured.seconds),
            peak_mib=measured.peak_mib,
            **where,
        )
        for sampling in way.samplings
    ]


def count_gflop(call: Callable[[], object]) -> float:
    """GFLOP of one call. Fused attention is taken apart for it: torch does not count what it cannot see into."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _FlopCounter() as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.flops / 1e9


class _FlopCounter(TorchDispatchMode):
    """torch's FlopCounterMode, its formulas, without the tracking of modules: that fails on a module without gradients
    that is handed a parameter.
    """

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def peak_mib(call: Callable[[], object]) -> float | None:
    """MiB at the peak of one call above the level before it; None where the system keeps no such peak.

    Linux keeps the peak of resident memory (VmHWM) and lets a process start it anew. What the allocator holds for
    later is given back first: memory that is used again would cost nothing.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)
        restart_resident_peak()
        before = resident_kib("VmHWM")
    except (OSError, AttributeError, TypeError):
        call()
        return None
    call()
    return (resident_kib("VmHWM") - before) / 2**10


def restart_resident_peak() -> None:
    """VmHWM, the peak of the resident memory of this process, counts from now on. OSError where Linux is not."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_kib(name: str) -> int:
    """A line of /proc/self/status in KiB: VmHWM, RssFile, ... TypeError where the kernel does not keep it."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1])


def phase_call(
    forward: Callable[[], Tensor], phase: str, dtype: str, leaves: Sequence[Tensor] = ()
) -> Callable[[], object]:
    """A call of `forward` in a phase: without gradients, or with those of `leaves` (of a sum of the outputs)."""
    device = torch.device(torch_device())

    def infer() -> Tensor:
        # not inference_mode: torch's counter then takes composite functions apart below autocast
        with torch.no_grad(), autocast(device, dtype):
            return forward()

    def train() -> None:
        with autocast(device, dtype):
            out = forward()
        out.backward(torch.ones_like(out))
        for leaf in leaves:
            leaf.grad = None

    return infer if phase == FORWARD else train


def trained(*modules: torch.nn.Module) -> list[Tensor]:
    """The parameters that get gradients."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    """So many threads for torch's operations, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronise() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
