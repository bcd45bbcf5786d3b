"""Object sizes of a data set, as Table 9 of the paper counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.data.dataset import Dataset, load_mask
from bench.interface import Sample

if TYPE_CHECKING:
    import pandas as pd


def object_areas(samples: Sequence[Sample]) -> pd.DataFrame:
    """One row per mask: dataset, object, area_pct (of the image area)."""
    import pandas as pd

    rows = []
    for sample in samples:
        for target in sample.targets:
            mask = load_mask(target.mask_file)
            rows.append((sample.dataset, target.object, 100 * mask.sum() / mask.size))
    return pd.DataFrame(rows, columns=["dataset", "object", "area_pct"])


def size_table(datasets: Sequence[Dataset]) -> pd.DataFrame:
    """Mean, median, min and max area in percent of the image, and support, by data set, side and object."""
    import pandas as pd

    frames = []
    for dataset in datasets:
        for side, samples in (("train", dataset.train), ("test", dataset.test)):
            frames.append(object_areas(samples).assign(side=side))
    areas = pd.concat(frames, ignore_index=True)
    grouped = areas.groupby(["dataset", "side", "object"])["area_pct"]
    table = grouped.agg(["mean", "median", "min", "max", "count"]).reset_index()
    names = {name: f"area_{name}_pct" for name in ("mean", "median", "min", "max")}
    return table.rename(columns={**names, "count": "support"})
