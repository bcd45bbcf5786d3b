"""A suite folder as the harness writes it, made by hand: discs for objects, shifted discs for predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench.metrics import lesions, surfaces
from bench.records import RECORD_COLUMNS, SCHEMA_VERSION, encode_mask, write_table
from bench.spec import RunSpec
from reports.aggregate import Scores, score
from reports.frame import FRAME_COLUMNS, empty_records
from reports.grid import Grid, check_grid
from reports.load import SuiteResults

SPLIT = "split0123"
OBJECTS = {"LIDC-IDRI": ["nodule"], "AMOS22-CT": ["left kidney", "right kidney"], "zebra": ["<b>stripe</b>"]}
METHODS = {"boltzformer": "BoltzFormer", "sam": "SAM", "nnunet": "nnU-Net"}
BACKBONES = {"hiera_laptop": "Hiera-XT"}


def disc(size: int, center: tuple[float, float], radius: float) -> np.ndarray:
    ys, xs = np.mgrid[:size, :size]
    return (ys - center[0]) ** 2 + (xs - center[1]) ** 2 <= radius**2


def write_data(folder: Path, objects: dict[str, list[str]], patients: int, slices: int, size: int) -> list[dict]:
    """Images and masks; one dict per test target, with its truth."""
    random = np.random.default_rng(7)
    targets = []
    for dataset, names in objects.items():
        root = folder / dataset
        (root / "test").mkdir(parents=True)
        (root / "test_mask").mkdir()
        for patient in range(patients):
            for index in range(slices):
                stem = f"p{patient}_{index}"
                image = random.integers(40, 90, (size, size)).astype(np.uint8)
                for number, name in enumerate(names):
                    center = random.uniform(0.3, 0.7, 2) * size
                    radius = np.exp(random.uniform(np.log(1.0), np.log(size / 6)))
                    truth = disc(size, tuple(center), radius)
                    image[truth] += 90
                    files = {"image_file": f"test/{stem}.png", "mask_file": f"test_mask/{stem}_{number}.png"}
                    rgba = np.dstack([truth * np.uint8(255)] * 3 + [np.full((size, size), 255, np.uint8)])
                    Image.fromarray(rgba).save(root / files["mask_file"])
                    ids = {
                        "dataset": dataset,
                        "object": name,
                        "image_id": stem,
                        "patient": f"{dataset}-{patient}",
                    }
                    targets.append({**ids, **files, "truth": truth, "center": center, "radius": radius})
                Image.fromarray(image).save(root / "test" / f"{stem}.png")
    return targets


def run_spec(method: str, seed: int, backbone: str | None = None, **changes) -> RunSpec:
    backbone = backbone or ("-" if method == "nnunet" else "hiera_laptop")
    fields = {
        "suite": "main",
        "profile": "laptop",
        "split_hash": SPLIT,
        "method": method,
        "backbone": backbone,
    }
    return RunSpec(**{**fields, "seed": seed, **changes})


def write_run(suite: Path, spec: RunSpec, targets: list[dict], shift: float, size: int) -> None:
    folder = suite / spec.run_id
    folder.mkdir()
    (folder / "spec.json").write_text(spec.model_dump_json())
    fit = {
        "budget": "400 steps x 16 images",
        "train_seconds": 61.5,
        "parameters": 1234567,
        "images_seen": 6400,
        "cost": {"gflop_per_prompt": 2.5, "peak_memory_mib": 900.0, "ms_1_prompt": 20.0, "ms_15_prompts": 4.0},
        "given": {"split": SPLIT, "image_size": str(size), "images_seen": "6400", "loss": "Dice"},
    }
    if spec.method != "nnunet":
        fit["given"] |= {"backbone_weights": f"b{spec.seed}", "text_encoder": f"t{spec.seed}"}
    fit["notes"] = ["reduced to 2 epochs & 2D"] if spec.method == "nnunet" else []
    status = {"state": "finished", "error": None, "seconds": 70.0, "started": "", "ended": "", "fit": fit}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "env.json").write_text(json.dumps({"versions": {"torch": "2.9.1"}, "device": "cpu", "cores": 2}))
    points = [{"step": step, "time": 1.0, "train_loss": 2 / (1 + step / 20)} for step in range(0, 400, 4)]
    points += [{"step": step, "val_dice": step / (step + 100 + 50 * shift)} for step in range(0, 400, 100)]
    lines = [json.dumps(point) for point in points] if spec.method != "nnunet" else []
    (folder / "history.jsonl").write_text("\n".join([*lines, '{"step": 4']))  # a line cut short by a kill
    records, predictions = [], []
    for target in targets:
        truth = target["truth"]
        center = target["center"] + np.array([shift, spec.seed])
        mask = disc(size, tuple(center), target["radius"] * (1 + 0.05 * shift))
        tp, fp, fn = (int(x.sum()) for x in (mask & truth, mask & ~truth, ~mask & truth))
        ids = {name: target[name] for name in ("dataset", "object", "image_id")}
        shape = {"height": size, "width": size}
        run = {"method": spec.row, "backbone": spec.backbone, "seed": spec.seed}
        hashes = {"schema_version": SCHEMA_VERSION, "spec_hash": spec.hash, "split_hash": spec.split_hash}
        counts = {"tp": tp, "fp": fp, "fn": fn, "area_px": tp + fn, "seconds": 0.01 * (1 + shift)}
        who = {"patient": target["patient"], "prompt": f"{target['object']} in {target['dataset']}"}
        sure = {} if spec.method == "nnunet" else {"confidence": 0.9 / (1 + shift)}
        records.append({**hashes, **run, **ids, **who, **counts, **shape, **sure, **surfaces(mask, truth)})
        records[-1] |= lesions(mask, truth)
        files = {"image_file": target["image_file"], "mask_file": target["mask_file"]}
        predictions.append({**ids, **files, **shape, "runs": encode_mask(mask)})
    write_table(records, folder / "records.parquet", RECORD_COLUMNS)
    write_table(predictions, folder / "predictions.parquet")


def write_suite(
    folder: Path,
    *,
    objects: dict[str, list[str]] | None = None,
    methods: dict[str, str] | None = None,
    seeds: tuple[int, ...] = (0,),
    patients: int = 3,
    slices: int = 2,
    size: int = 64,
    phantom: bool = True,
) -> Path:
    """<folder>/suite with all runs finished, and the data in <folder>/data; returns the suite folder."""
    objects, methods = objects or OBJECTS, methods or METHODS
    targets = write_data(folder / "data", objects, patients, slices, size)
    suite = folder / "suite"
    suite.mkdir()
    runs = []
    for place, method in enumerate(methods):
        for seed in seeds:
            name, _, variant = method.partition(" ")
            spec = run_spec(name, seed, variant=variant or None)
            write_run(suite, spec, targets, 0.6 * (place + 1), size)
            runs.append(spec.run_id)
    content = {
        "schema_version": SCHEMA_VERSION,
        "suite": "main",
        "title": "Main comparison",
        "profile": "laptop",
        "split_hash": SPLIT,
        "command": "bench run --suite main",
        "phantom": phantom,
        "data": {name: str(folder / "data" / name) for name in objects},
        "runs": runs,
        "backbones": BACKBONES,
        "methods": methods,
    }
    (suite / "suite.json").write_text(json.dumps(content))
    return suite


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def results_of(records: pd.DataFrame, datasets: tuple[str, ...] = ()) -> SuiteResults:
    """Records of finished runs, without a folder."""
    from reports.load import Run

    keys = records[["method", "backbone", "seed"]].drop_duplicates().itertuples(index=False)
    runs = tuple(Run(f"{m}-{b}-{s}", Path("none"), m, b, s, "finished") for m, b, s in keys)
    data = {name: Path("none") for name in datasets}
    texts = {"suite": "main", "title": "t", "profile": "laptop", "split_hash": SPLIT, "commands": ("c",)}
    return SuiteResults(
        folder=Path("none"),
        phantom=False,
        data=data,
        methods={},
        backbones={},
        reference=None,
        runs=runs,
        records=records,
        **texts,
    )


def frame_of(rows: list[dict]) -> pd.DataFrame:
    """Records with defaults for what a test does not care about; area 1% of a 100 x 100 image unless counts
    say so."""
    defaults = {"schema_version": SCHEMA_VERSION, "spec_hash": "h", "split_hash": SPLIT, "method": "a"}
    defaults |= {"backbone": "-", "seed": 0, "dataset": "d", "object": "o", "image_id": "i", "patient": "p"}
    defaults |= {"prompt": "o", "tp": 0, "fp": 0, "fn": 0, "dice": None}
    defaults |= {"height": 100, "width": 100, "seconds": 0.1}
    full = [{**defaults, **row} for row in rows]
    full = [{"area_px": row["tp"] + row["fn"], **row} for row in full]
    frame = pd.DataFrame(full).reindex(columns=list(FRAME_COLUMNS))
    return frame.astype(FRAME_COLUMNS) if full else empty_records()


def scores_of(records: pd.DataFrame, datasets: tuple[str, ...] = ()) -> tuple[Grid, Scores]:
    grid = check_grid(results_of(records, datasets))
    return grid, score(records, grid)


@pytest.fixture(scope="session")
def build():
    """The makers above, for tests (importlib mode: a conftest cannot be imported)."""

    class Makers:
        suite = staticmethod(write_suite)
        spec = staticmethod(run_spec)
        change = staticmethod(change_json)
        frame = staticmethod(frame_of)
        results = staticmethod(results_of)
        scores = staticmethod(scores_of)

    return Makers


@pytest.fixture
def published(shared) -> dict[str, Path]:
    """Data set name -> folder of the published per-mask results."""
    root = shared / "data" / "biomedparse_results"
    msd = {"Lung": "Task06_Lung", "Pancreas": "Task07_Pancreas"}
    msd |= {"HepaticVessel": "Task08_HepaticVessel", "Colon": "Task10_Colon"}
    folders = {
        "LIDC-IDRI": root / "LIDC-IDRI",
        "AMOS22-CT": root / "amos22/CT",
        "AMOS22-MRI": root / "amos22/MRI",
    }
    return folders | {f"MSD-{name}": root / "MSD" / folder for name, folder in msd.items()}
