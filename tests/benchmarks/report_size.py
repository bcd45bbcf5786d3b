"""Time and memory of `bench report` against the number of records, up to the whole test set many times over.

    python tests/benchmarks/report_size.py [--records 10000,100000,1000000,10000000]

Each number is a suite folder of its own, written as the harness writes it: 12 methods with 20 seeds each, on the seven
data sets of the paper, with all scores a record has; no images, so no overlays. The report is made by the command, in a
process of its own, of which the peak resident memory is printed. Asserts nothing. The machine should have nothing else
to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from bench.records import RECORD_COLUMNS, SCHEMA_VERSION, write_table
from bench.spec import RunSpec
from experiments.paper import TABLE_9
from reports.load import load_suite

METHODS, SEEDS = 12, 20
SPLIT = "0" * 12
MASKS_PER_PATIENT = 30
SIDE = 1024  # px


def write_suite(folder: Path, count: int) -> None:
    """A suite folder with `count` records or a few more."""
    cases = test_masks(-(-count // (METHODS * SEEDS)))
    folder.mkdir()
    methods = {f"method{number}": f"Method {number}" for number in range(METHODS - 1)} | {"boltzformer": "BoltzFormer"}
    runs = []
    for place, method in enumerate(methods):
        for seed in range(SEEDS):
            spec = RunSpec(
                suite="main", profile="laptop", method=method, backbone="hiera_xt", seed=seed, split_hash=SPLIT
            )
            run_dir = folder / spec.run_id
            run_dir.mkdir()
            (run_dir / "spec.json").write_text(spec.model_dump_json())
            status = {"state": "finished", "error": None, "seconds": 70.0, "started": "", "ended": "", "fit": {}}
            (run_dir / "status.json").write_text(json.dumps(status))
            records = scored(cases, place, np.random.default_rng((place, seed)))
            ids = {"method": method, "backbone": "hiera_xt", "seed": seed, "spec_hash": spec.hash}
            records = records.assign(split_hash=SPLIT, schema_version=SCHEMA_VERSION, **ids)
            write_table(records, run_dir / "records.parquet", RECORD_COLUMNS)
            runs.append(spec.run_id)
    content = {
        "schema_version": SCHEMA_VERSION,
        "suite": "main",
        "title": "Report of many records",
        "profile": "laptop",
        "split_hash": SPLIT,
        "command": "bench run --suite main",
        "phantom": True,
        "data": {dataset: str(folder / dataset) for dataset, _ in TABLE_9},
        "runs": runs,
        "backbones": {"hiera_xt": "Hiera-XT"},
        "methods": methods,
        "reference": "boltzformer",
    }
    (folder / "suite.json").write_text(json.dumps(content))


def test_masks(count: int) -> pd.DataFrame:
    """`count` masks over the paper's data sets and objects, some of each patient, areas log-normal."""
    random = np.random.default_rng(0)
    objects = list(TABLE_9)
    of = random.integers(len(objects), size=count)
    number = np.arange(count)
    area = np.exp(random.normal(7.5, 2, count)).astype(np.int64).clip(3, SIDE * SIDE // 2)
    return pd.DataFrame(
        {
            "dataset": [objects[place][0] for place in of],
            "object": [objects[place][1] for place in of],
            "image_id": [f"image{place:06d}" for place in number],
            "patient": [f"patient{place // MASKS_PER_PATIENT:05d}" for place in number],
            "prompt": [f"{objects[place][1]} in {objects[place][0]}" for place in of],
            "area_px": area,
            "height": SIDE,
            "width": SIDE,
        }
    )


def scored(cases: pd.DataFrame, skill: int, random: np.random.Generator) -> pd.DataFrame:
    """The cases with everything that a run measures; a higher `skill` finds more."""
    count, area = len(cases), cases["area_px"].to_numpy()
    found = random.beta(4 + skill / 4, 3, count) * (random.random(count) > 0.05)
    tp = (found * area).astype(np.int64)
    fp = (random.beta(2, 6, count) * area).astype(np.int64)
    hit = (tp > 0).astype(np.int64)
    surface = np.sort(random.random((count, 3)), axis=1)
    return cases.assign(
        tp=tp,
        fn=area - tp,
        fp=fp,
        seconds=random.random(count) / 100,
        confidence=found.clip(0, 1),
        nsd_1=surface[:, 0],
        nsd_2=surface[:, 1],
        nsd_4=surface[:, 2],
        hd95=np.where(tp + fp > 0, random.gamma(2, 5, count), np.nan),
        lesions=1,
        found=hit,
        detections=hit + (fp > area // 4),
        hits=hit,
    )


def report(folder: Path) -> tuple[float, float]:
    """Seconds and peak resident memory in GiB of `bench report` on a suite folder."""
    start = time.perf_counter()
    words = [sys.executable, "-m", "bench", "report", str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"bench report failed on {folder}")
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def main(records: Annotated[str, typer.Option(help="Numbers of records.")] = "10000,100000,1000000,10000000") -> None:
    """Prints one line per number of records."""
    print(f"{'records':>12} {'seconds':>8} {'GiB':>6}", flush=True)
    for count in map(int, records.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "suite"
            write_suite(folder, count)
            seconds, memory = report(folder)
            count = len(load_suite(folder).records)
        print(f"{count:12,} {seconds:8.1f} {memory:6.2f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
