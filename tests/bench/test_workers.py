"""Two real processes by gloo: what passes between them, and how the fault of one ends or halves the step of both."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.workers import Workers, here

ROOT = Path(__file__).resolve().parents[2]
COMMON = """
import datetime, os, sys
from pathlib import Path
import torch
from torch import distributed as dist
from bench.workers import LeaderEnded, PeerLost, Quiet, SharedLog, Workers, here
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
workers = here()
assert (workers.count, workers.leads) == (2, workers.rank == 0)
"""
END = "os._exit(0)  # past the interpreter's own end, where a thread of gloo sometimes aborts the process"


def both(code, tmp_path, port):
    """Runs the code as two workers that meet at `port`; (exit code, output) of each by rank."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-u", "-c", COMMON + code + END],
            env=environment | {"RANK": str(rank)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


def test_a_process_without_others_is_one_of_one():
    alone = here()
    assert alone == Workers() and alone.leads and alone.share == (0, 1)
    assert alone.gather(1.5, 2) == [[1.5, 2.0]] and alone.join([(1, "a")]) == [(1, "a")]
    parameter = torch.nn.Parameter(torch.ones(2))
    alone.sum_gradients([parameter])
    assert parameter.grad is None
    alone.copy_leading([parameter])
    assert parameter.tolist() == [1, 1]
    with pytest.raises(KeyboardInterrupt):
        alone.lead(lambda: (_ for _ in ()).throw(KeyboardInterrupt))


EXCHANGE = """
rank = workers.rank
assert workers.gather(rank, 7) == [[0.0, 7.0], [1.0, 7.0]]
assert workers.join([["a", "c", "e"], ["b", "d"]][rank]) == ["a", "b", "c", "d", "e"]

import bench.workers
bench.workers.BUCKET = 8  # several buckets, and gradients larger than one
shapes = [(2, 3), (4,), (3, 5), (1,), (2, 2)]
parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
gradients = [[torch.randn(shape, generator=torch.Generator().manual_seed(10 * r + n)) for n, shape in enumerate(shapes)]
             for r in range(2)]
for n, parameter in enumerate(parameters):
    if n != 3 and (n, rank) != (1, 0):  # one that nobody has, one that the other has
        parameter.grad = gradients[rank][n].clone()
parameters[0].grad = parameters[0].grad.t().contiguous().t()  # another order in memory
frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
workers.sum_gradients([*parameters, frozen])
for n, parameter in enumerate(parameters):
    if n == 3:
        assert parameter.grad is None
    else:
        expected = gradients[1][n] if n == 1 else gradients[0][n] + gradients[1][n]
        assert torch.equal(parameter.grad, expected), n
assert frozen.grad is None

workers.copy_leading([frozen.fill_(rank + 1), parameters[0].detach().fill_(rank - 1)])
assert frozen.item() == 1 and (parameters[0] == -1).all()

class Log(Quiet):
    seen = []
    def metrics(self, step, **values):
        self.seen.append((step, values))
    def progress(self, phase, step, total):
        raise KeyboardInterrupt

log = SharedLog(workers, Log())
log.metrics(3, loss=1.0)
assert Log.seen == ([(3, {"loss": 1.0})] if rank == 0 else [])
try:
    log.progress("train", 3, 4)
except KeyboardInterrupt:
    print("asked")
except LeaderEnded:
    print("follows")

if rank == 1:
    os._exit(9)  # as a kill
try:
    for _ in range(100):
        workers.gather(1.0)
except PeerLost as error:
    print("lost:", error)
"""


def test_what_passes_between_two(free_port, tmp_path):
    (code, leader), (other_code, other) = both(EXCHANGE, tmp_path, free_port())
    assert (code, other_code) == (0, 9), leader + other
    asked, lost = [line for line in leader.splitlines() if line.startswith(("asked", "lost: "))]
    assert asked == "asked" and len(lost) > 10
    assert "follows" in other


FAULTS = """
import json
sys.path.insert(0, sys.argv[1] if len(sys.argv) > 1 else os.environ["TESTS"])
from test_step import Batch, METHODS, Progress, SharedGenerator, Training, spec_of
from bench.interface import Part
from bench.step import counted, parts_of, take_step
from bench.train import batch_loss

rank = workers.rank
torch.manual_seed(0)
model = METHODS["sam"].build(spec_of("sam")).build()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
sampling = SharedGenerator()
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
training, now = Training(model, optimizer, schedule, sampling), Progress()
images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255
masks = (torch.rand(8, 64, 64, generator=torch.Generator().manual_seed(2)) < 0.1).float()
whole = Batch(images, [f"object {n}" for n in range(8)], torch.arange(8), masks)
batch = counted(list(parts_of(whole, 4))[rank], workers)
plain = lambda part: batch_loss(model, part, "fp32", sampling)

def small_memory(part):
    if rank == 1 and len(part.images) > 2:
        raise MemoryError
    return plain(part)

loss, norm = take_step(training, batch, small_memory, 1e9, now, workers, Quiet(), Path("."))
print("halved to", now.micro_batch, loss)
flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
assert all(torch.equal(flat, other) for other in workers.join([flat]))

def broken(part):
    return plain(part) * (float("inf") if rank == 1 else 1.0)

try:
    take_step(training, batch, broken, 1e9, Progress(step=6), workers, Quiet(), Path("."))
except FloatingPointError as error:
    print("stopped:", error)
"""


@pytest.mark.fault
def test_the_fault_of_one_is_that_of_both(free_port, tmp_path, monkeypatch):
    monkeypatch.setenv("TESTS", str(Path(__file__).parent))
    outcomes = both(FAULTS, tmp_path, free_port())
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    said = [[line for line in out.splitlines() if line.startswith(("halved", "stopped"))] for _, out in outcomes]
    assert said[0] == said[1] and said[0][0].startswith("halved to 2 ")
    assert said[0][1] == "stopped: the training loss is inf at step 7; its batch is in not-finite.pt"
    left = torch.load(tmp_path / "not-finite.pt", weights_only=True)
    assert left["prompts"] == [f"object {n}" for n in range(4, 8)], "the images of the worker that found it"
    assert left["part"] == {"first": 4, "total": 8, "objects": 8}
