"""Fixtures of the tests that look into MLflow."""

import json

import pytest

from bench.tracking import initialize_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The URI of a new SQLite store; making its tables takes seconds, so the tests of a file share it."""
    runs = tmp_path_factory.mktemp("runs")
    uri = f"sqlite:///{runs / 'mlflow.db'}"
    assert initialize_store(uri, runs)
    return uri


@pytest.fixture(scope="session")
def curves_in_folder():
    """curves_in_folder(run folder) -> {name: [(step, value), ...]}, all that its history.jsonl holds."""

    def read(run_dir):
        found = {}
        for line in (run_dir / "history.jsonl").read_text().splitlines():
            row = json.loads(line)
            for name in row.keys() - {"step", "time"}:
                found.setdefault(name, []).append((row["step"], row[name]))
        return {name: sorted(points) for name, points in found.items()}

    return read
