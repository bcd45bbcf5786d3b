"""What differs between the processes that train one trial together (`bench.launch` starts them): who each is, and what
passes between them. A process that trains alone is one of one, and nothing passes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from bench.interface import Log

BUCKET = 2**24  # gradients that are summed at once; 64 MiB


class PeerLost(Exception):
    """Another worker does not answer: its process or its machine is gone."""


class LeaderEnded(BaseException):
    """The leading worker has ended on an exception of its own, such as the user's wish to stop."""


@dataclass(frozen=True)
class Workers:
    """This process among the `count` that train a trial. The first leads: it logs and writes files."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"  # of what passes between them

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        return self.rank, self.count

    def seed(self, seed: int, step: int) -> None:
        """Of several workers: torch's own generators, which stochastic depth draws from, by step and worker."""
        if self.count > 1:
            digest = hashlib.sha256(f"{seed} {step} {self.rank}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:7], "little"))

    def gather(self, *values: float) -> list[list[float]]:
        """The numbers of every worker, by rank."""
        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.count == 1:
            return [own.tolist()]
        all_of = [torch.empty_like(own) for _ in range(self.count)]
        with _heard():
            dist.all_gather(all_of, own)
        return torch.stack(all_of).tolist()

    def join(self, rows: Sequence[Any]) -> list[Any]:
        """The rows of every worker: the first of each by rank, then the second ones, and so on."""
        if self.count == 1:
            return list(rows)
        all_of: list[Any] = [None] * self.count
        with _heard():
            dist.all_gather_object(all_of, list(rows))
        longest = max(map(len, all_of))
        return [own[place] for place in range(longest) for own in all_of if place < len(own)]

    def copy_leading(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gives every worker the leading one's values: the same steps on another machine may round to others."""
        if self.count == 1:
            return
        for parameter in parameters:
            with _heard():
                dist.broadcast(parameter.detach(), src=0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Puts the sum over all workers into each parameter's gradient, the same bits everywhere.

        Not by torch's DDP: its sums begin within the backward pass, where the others would wait for ever for a worker
        that is out of memory or has found a loss that is not finite. One without a gradient anywhere keeps none.
        """
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        has = torch.tensor([p.grad is not None for p in trained], dtype=torch.uint8, device=self.device)
        with _heard():
            dist.all_reduce(has, dist.ReduceOp.MAX)
        trained = [parameter for parameter, some in zip(trained, has.tolist(), strict=True) if some]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in trained]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            with _heard():
                dist.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def lead(self, call: Callable[[], None]) -> None:
        """Calls it on the leading worker. What it raises there is raised there, and `LeaderEnded` on the others."""
        raised = None
        if self.leads:
            try:
                call()
            except BaseException as error:
                if self.count == 1:
                    raise
                raised = error
        if any(ended for (ended,) in self.gather(raised is not None)):
            raise raised or LeaderEnded


def here() -> Workers:
    """This process, by torch's process group; one of one where there is none."""
    if not dist.is_initialized():
        return Workers()
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return Workers(dist.get_rank(), dist.get_world_size(), device)


@dataclass(frozen=True)
class SharedLog:
    """The leading worker's log (`interface.Log`) for all: each calls it alike, and where it raises all end."""

    workers: Workers
    log: Log

    def progress(self, phase: str, step: int, total: int) -> None:
        """As `Log.progress`."""
        self.workers.lead(lambda: self.log.progress(phase, step, total))

    def metrics(self, step: int, **values: float) -> None:
        """As `Log.metrics`."""
        self.workers.lead(lambda: self.log.metrics(step, **values))


class Quiet:
    """The log (`interface.Log`) of a worker that does not lead."""

    def progress(self, phase: str, step: int, total: int) -> None:
        """Nothing."""

    def metrics(self, step: int, **values: float) -> None:
        """Nothing."""


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients in order, BUCKET numbers at a time or one alone."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


@contextmanager
def _heard() -> Iterator[None]:
    """PeerLost where torch says that an exchange with the others has failed."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLost(" ".join(str(error).split())[:300]) from error
