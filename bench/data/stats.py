"""Object sizes of a data set, as Table 9 of the paper counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.data.dataset import Dataset, load_mask

if TYPE_CHECKING:
    import pandas as pd


def size_table(datasets: Sequence[Dataset]) -> pd.DataFrame:
    """Mean, median, min and max area in percent of the image, and support, by side, data set and object."""
    import pandas as pd

    from reports.aggregate import object_sizes

    frames = []
    for side in ("train", "test"):
        rows = []
        for sample in (s for dataset in datasets for s in getattr(dataset, side)):
            for target in sample.targets:
                mask = load_mask(target.mask_file)
                rows.append((sample.dataset, target.object, sample.image_id, 100 * mask.sum() / mask.size))
        areas = pd.DataFrame(rows, columns=["dataset", "object", "image_id", "area_pct"])
        table = object_sizes(areas)
        table.insert(0, "side", side)
        frames.append(table)
    return pd.concat(frames, ignore_index=True)
