"""Where the wall time of a real trial goes: in the network, or in what stands around it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from bench import train
from bench.atomic import write_json
from bench.data.dataset import load_dataset
from bench.data.phantom import generate
from bench.data.splits import make_splits
from bench.execute import execute, run_state
from bench.methods import make_spec
from bench.profiling.measure import Case, Outcome, Result, synchronise, threads_set
from bench.spec import Profile
from bench.tracking import initialize_store, store_uri
from experiments import SUITES
from experiments.profiles import LAPTOP, SMOKE
from models.segmenter import BoltzFormer

FORWARD, BACKWARD, OPTIMISER = "forward and loss", "backward", "clipping and optimiser"
INFERENCE = "forward on validation and test"
NETWORK = (FORWARD, BACKWARD, OPTIMISER, INFERENCE)
BEFORE, STEPS = "before the first step", "between steps"
AROUND = "around validation and prediction, scores, files"
MEASURING = "measuring what a prompt costs"
REST = (BEFORE, STEPS, AROUND, MEASURING)
AT_MOST = 0.05


@dataclass
class Watch:
    """(part, beginning, end) of everything of NETWORK that happens, and of MEASURING, in their order."""

    events: list[tuple[str, float, float]] = field(default_factory=list)
    measuring: bool = False

    def add(self, part: str, start: float) -> None:
        """A part that ends now."""
        if not self.measuring:
            self.events.append((part, start, _now()))


def case(quick: bool) -> Case:
    """A trial of BoltzFormer by the laptop profile (quick: of the smoke profile), from its spec to its records."""
    profile, expected = (SMOKE, 15.0) if quick else (LAPTOP, 780.0)
    return Case(f"harness, a whole trial, {profile.name} profile", expected, partial(_run, profile))


def _run(profile: Profile) -> Result:
    with tempfile.TemporaryDirectory(prefix="boltzbench-profile-") as folder:
        parts = parts_of_trial(profile, Path(folder))
    total = sum(parts.values())
    outside = sum(parts[name] for name in REST) / total
    told = ", ".join(f"{name} {seconds:.1f} s ({seconds / total:.1%})" for name, seconds in parts.items())
    note = f"a trial of BoltzFormer, {profile.name} profile, {total:.0f} s: {told}"
    work = f"{profile.name} profile: wall time of a trial outside forward, backward, optimiser"
    bar = Outcome(None, work, f"under {AT_MOST:.0%}", f"{outside:.1%}", outside < AT_MOST)
    return Result(notes=[note], outcomes=[bar])


def parts_of_trial(profile: Profile, folder: Path) -> dict[str, float]:
    """Seconds of each of NETWORK and REST in a trial of BoltzFormer in `folder`, with MLflow and on one thread, as Ray
    runs it; together its wall time. RuntimeError where the trial fails.
    """
    splits = make_splits([load_dataset(data) for data in generate(folder / "data", profile.phantom, profile.objects)])
    suite_dir = folder / "runs" / "profile"
    suite_dir.mkdir(parents=True)
    splits.save(suite_dir / "splits.json")
    write_json(suite_dir / "suite.json", {"phantom": True})  # what MLflow is told of the data
    uri = store_uri(suite_dir.parent)
    spec = make_spec(SUITES["main"], profile, "boltzformer", profile.backbones[0], 0, splits.hash)
    there = initialize_store(uri, suite_dir.parent)
    with threads_set(1), watched() as watch:
        start = _now()
        state = execute(spec, suite_dir, uri if there else None)
        end = _now()
    if state != "finished":
        raise RuntimeError(f"the trial that is measured ended {state}: {run_state(suite_dir / spec.run_id)['error']}")
    return shares(watch.events, start, end)


def shares(events: Sequence[tuple[str, float, float]], start: float, end: float) -> dict[str, float]:
    """Seconds by part of what lies between `start` and `end`: the events themselves, and the gaps by what is beside
    them.
    """
    seconds = dict.fromkeys((*NETWORK, *REST), 0.0)
    last, last_part = start, BEFORE
    for part, begun, ended in events:
        seconds[part] += ended - begun
        seconds[_gap(last_part, part)] += begun - last
        last, last_part = ended, part
    seconds[AROUND] += end - last
    return seconds


def _gap(before: str, after: str) -> str:
    if before == BEFORE:
        return BEFORE
    return AROUND if {before, after} & {INFERENCE, MEASURING} else STEPS


@contextmanager
def watched() -> Iterator[Watch]:
    """Watches BoltzFormer's forward, every backward and every optimiser of this process.

    From outside: the trial is the very code that a suite runs.
    """
    watch = Watch()
    begun: dict[str, float] = {}  # empty until the first image: steps on the prompts are of what comes before it
    forward, backward, measure = BoltzFormer.forward, torch.Tensor.backward, train.inference_cost

    def watched_forward(self: BoltzFormer, *args: Any, **more: Any) -> Any:
        start = _now()
        out = forward(self, *args, **more)
        if torch.is_grad_enabled():
            begun[FORWARD] = start  # its loss comes next
        else:
            watch.add(INFERENCE, start)
        return out

    def watched_backward(self: torch.Tensor, *args: Any, **more: Any) -> None:
        if not begun:
            return backward(self, *args, **more)
        watch.add(FORWARD, begun[FORWARD])
        start = _now()
        backward(self, *args, **more)
        watch.add(BACKWARD, start)
        begun[OPTIMISER] = _now()

    def watched_measure(*args: Any, **more: Any) -> Any:
        start = _now()
        watch.measuring = True
        try:
            return measure(*args, **more)
        finally:
            watch.measuring = False
            watch.add(MEASURING, start)

    def after_step(*_: Any) -> None:
        if begun:
            watch.add(OPTIMISER, begun[OPTIMISER])

    hook = register_optimizer_step_post_hook(after_step)
    BoltzFormer.forward, torch.Tensor.backward, train.inference_cost = (
        watched_forward,
        watched_backward,
        watched_measure,
    )
    try:
        yield watch
    finally:
        BoltzFormer.forward, torch.Tensor.backward, train.inference_cost = forward, backward, measure
        hook.remove()


def _now() -> float:
    synchronise()
    return time.perf_counter()
