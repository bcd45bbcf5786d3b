"""Locks of suite and trial folders, held by real processes."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench import locks
from bench.atomic import write_text
from bench.errors import UserError
from bench.locks import alone_in, locked

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def holder(started, tmp_path):
    """holder(name, seconds) -> a process that holds tmp_path by that function of `bench.locks`."""

    def hold(name, seconds):
        code = f"import sys, time; from pathlib import Path; from bench.locks import {name}\n"
        code += f"with {name}(Path(sys.argv[1])):\n  print('held', flush=True); time.sleep({seconds})"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = started([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout.readline().strip() == "held"
        return process

    return hold


def test_a_second_holder_of_a_suite_is_told_of_the_first(holder, tmp_path):
    first = holder("locked", 60)
    words = f"in use by `bench run` of process {first.pid} on {socket.gethostname()}: wait"
    with pytest.raises(UserError, match=words), locked(tmp_path):
        pass
    first.kill()
    first.wait()
    with locked(tmp_path):  # a dead holder holds nothing
        assert (tmp_path / "lock").read_text().split()[0] == str(os.getpid())


def test_a_trial_waits_for_the_process_that_still_works_on_it(holder, tmp_path):
    first = holder("alone_in", 1.5)
    with alone_in(tmp_path):
        assert first.wait(10) == 0


def test_a_process_that_does_not_end_is_told(holder, tmp_path, monkeypatch):
    holder("alone_in", 60)
    monkeypatch.setattr(locks, "PATIENCE", 0.5)
    with pytest.raises(UserError, match=r"another process works in .* and does not end"), alone_in(tmp_path):
        pass


@pytest.mark.parametrize("hold", [locked, alone_in])
def test_a_file_system_without_locks_is_told(hold, tmp_path, monkeypatch):
    def no_locks(handle, flags):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match=f"^{tmp_path} is on a file system without locks .*-o flock"), hold(tmp_path):
        pass


@pytest.mark.parametrize("hold", [locked, alone_in])
def test_what_a_killed_writer_has_left_is_removed_and_nothing_else(hold, tmp_path):
    write_text(tmp_path / "status.json", "{}")
    (tmp_path / ".status.json.4321-8765.tmp").write_text("{")
    (tmp_path / ".exchange.json").write_text("{}")
    if hold is locked:
        (tmp_path / ".tune-x" / "trial").mkdir(parents=True)
    with hold(tmp_path):
        names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".exchange.json", "lock", "status.json"]
