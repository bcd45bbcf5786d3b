"""A suite at a URL is one driver's at a time; drivers are real processes with folders of their own."""

import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import lease
from bench.errors import UserError
from bench.exchange import Exchange
from bench.lease import DRIVER, leased

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from bench import lease
from bench.exchange import Exchange
lease.BEAT = lease.PAUSE = 0.2
with lease.leased(Exchange(sys.argv[1], Path(sys.argv[2]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/storage/two"


@pytest.fixture
def holder(started, url, tmp_path):
    """A process that holds the suite from a folder of its own."""
    command = [sys.executable, "-c", HOLDER, url, tmp_path / "first" / "two"]
    process = started(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stdout.readline().strip() == "held"
    return process


def test_a_second_driver_is_told_of_the_first(holder, url, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lease, "PAUSE", 0.2)
    who = f"`bench run` of process {holder.pid} on {socket.gethostname()}"
    second = Exchange(url, tmp_path / "second" / "two")
    with pytest.raises(UserError, match=f"^{url} is in use by {who}: wait for it, or choose"), leased(second):
        pass
    assert f"{url} was last used by {who}: looking for 20 s" in capsys.readouterr().err
    # who dies is silent from then on
    holder.kill()
    holder.wait()
    monkeypatch.setattr(lease, "SILENCE", 1.0)
    began = time.monotonic()
    with leased(second):
        assert time.monotonic() - began >= 1.0
        assert f'"process": {os.getpid()}'.encode() in second.get(DRIVER)
    assert second.get(DRIVER) is None


def test_the_folder_of_a_dead_driver_goes_on_at_once(holder, url, tmp_path, monkeypatch, capsys):
    """Whoever holds the folder knows that the one before does not."""
    holder.kill()
    holder.wait()
    monkeypatch.setattr(lease, "PAUSE", 0.1)
    with leased(Exchange(url, tmp_path / "first" / "two")):
        pass
    assert not capsys.readouterr().err


def test_another_machine_of_the_same_name_and_folder_is_not_the_dead_driver(holder, url, tmp_path, monkeypatch):
    """Copies of one image have equal names."""
    monkeypatch.setattr(lease, "_machine", lambda: "another")
    with pytest.raises(UserError, match="is in use by"), leased(Exchange(url, tmp_path / "first" / "two")):
        pass


def test_a_driver_that_has_slept_sees_its_successor_and_leaves_it_alone(url, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "PAUSE", 0.1)
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(sys, "__stderr__", told := io.StringIO())
    ours = Exchange(url, tmp_path / "ours")
    with leased(ours):
        ours.put(DRIVER, b'{"id": "successor", "process": 7, "host": "other"}')
        deadline = time.monotonic() + 30
        while not told.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
    assert ours.get(DRIVER) == b'{"id": "successor", "process": 7, "host": "other"}'
    assert told.getvalue().startswith(f"warning: {url} has been taken over by `bench run` of process 7 on other")
    assert told.getvalue().count("\n") == 1


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b"[1]", b'{"host": "\\u001b[2J"}'])
def test_what_somebody_else_has_written_there_is_no_traceback(content, url, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lease, "PAUSE", 0.1)
    monkeypatch.setattr(lease, "SILENCE", 0.2)
    exchange = Exchange(url, tmp_path / "ours")
    exchange.put(DRIVER, content)
    with leased(exchange):
        assert b'"beat"' in exchange.get(DRIVER)
    assert "\x1b" not in capsys.readouterr().err


def test_of_two_that_begin_at_once_one_goes_on(url, tmp_path, monkeypatch):
    ours, others = Exchange(url, tmp_path / "ours"), Exchange(url, tmp_path / "others")
    monkeypatch.setattr(time, "sleep", lambda seconds: others.put(DRIVER, b'{"process": 7, "host": "other"}'))
    with pytest.raises(UserError, match="in use by `bench run` of process 7 on other"), leased(ours):
        pass


def test_the_command_is_refused_before_it_trains(bench, holder, url, tmp_path):
    words = ("run", "--suite", "smoke", "--methods", "location_prior", "--executor", "local", "--name", "two")
    done = bench(*words, "--storage", url.removesuffix("/two"), "--runs-dir", tmp_path / "second")
    assert done.returncode == 2 and f"{url} is in use by `bench run` of process {holder.pid}" in done.stderr
    assert not list(tmp_path.glob("second/two/*/spec.json"))
