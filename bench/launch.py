"""Ray Train runs one trial on several workers; what they are to each other stands in `bench.workers`.

The trial itself, which reserves nothing, waits for them. They do its work alike, and the leading one all that is done
once: it logs, writes files and predicts.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.environment import NODE
from bench.errors import PartLost
from bench.execute import Work, fit_and_predict, printing_to
from bench.interface import Spread
from bench.publish import tracker_of
from bench.spec import RunSpec

if TYPE_CHECKING:
    from bench.tracking import Tracker


@dataclass(frozen=True)
class Team:
    """The workers of each trial: how many, what each reserves (as `bench.estimate.resources`), where Ray Train keeps
    its own files; `uri` and `parent` are those of `bench.execute`.
    """

    count: int
    reserved: dict[str, float]
    storage: str
    uri: str | None = None
    parent: str | None = None
    work: Work = fit_and_predict

    def __call__(
        self,
        spec: RunSpec,
        suite_dir: Path,
        run_dir: Path,
        tracker: Tracker | None,
        spread: Spread | None,
        micro_batch: int | None = None,
    ) -> dict[str, Any]:
        """The `work` by all of them: a `Work` itself (the leader tracks by itself, and `spread` is of no use).

        Raises what the work raised in a worker; PartLost where one is gone; KeyboardInterrupt where they were asked to
        stop.
        """
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        gpu = self.reserved.get("gpu", 0)
        names = {"cpu": "CPU", "gpu": "GPU", "memory": "memory"}
        trainer = TorchTrainer(
            _train,
            train_loop_config={
                "team": self,
                "spec": spec.model_dump_json(),
                "suite_dir": str(suite_dir),
                "micro_batch": micro_batch,
                # else the trial opens its run in the end, and sends the curve then
                "tracked": tracker is not None and tracker.open(),
            },
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=self.count,
                use_gpu=bool(gpu),
                resources_per_worker={names[name]: amount for name, amount in self.reserved.items()},
            ),
            run_config=RunConfig(
                name=spec.run_id, storage_path=self.storage, failure_config=FailureConfig(max_failures=0)
            ),
        )
        try:
            fit = trainer.fit().return_value
        except TrainingFailedError as error:
            raise cause_of(error) from error
        if fit is None:
            raise KeyboardInterrupt
        return fit


def cause_of(error: Exception) -> BaseException:
    """What the work raised on a worker, of the first by rank; PartLost where the workers themselves are gone."""
    from bench.workers import PeerLost

    failures = getattr(error, "worker_failures", {})
    raised = [failures[rank] for rank in sorted(failures)]
    raised = [error for error in raised if not isinstance(error, PeerLost) and not _of_ray(error)]
    if raised:
        return raised[0]
    return PartLost(" ".join(str(error).split())[:300])


def _of_ray(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] == "ray"


def _train(asked: dict[str, Any]) -> dict[str, Any] | None:
    """One worker's part, in a process of its own; the leader's is the result, None where it was asked to stop."""
    import ray
    import torch

    from bench.workers import LeaderEnded, here

    os.environ[NODE] = ray.get_runtime_context().get_node_id()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    team, suite_dir = asked["team"], Path(asked["suite_dir"])
    spec = RunSpec.model_validate(json.loads(asked["spec"]))
    run_dir, leads = suite_dir / spec.run_id, here().leads
    file = run_dir / "output.log" if leads else Path(os.devnull)
    with file.open("a", encoding="utf-8") as output, printing_to(output):
        tracked = leads and asked["tracked"]
        tracker = tracker_of(spec, suite_dir, team.uri, team.parent, fresh=False) if tracked else None
        try:
            return team.work(spec, suite_dir, run_dir, tracker, None, asked["micro_batch"])
        except (KeyboardInterrupt, LeaderEnded):
            return None
