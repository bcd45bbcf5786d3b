"""Object sizes of data sets, as Table 9 of the paper counts them, and how far they are from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bench.data.dataset import SPLITS, Dataset, load_mask
from bench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["side", "dataset", "object", "image_id", "area_pct"]
SIZES = ["area_mean_pct", "area_median_pct", "area_min_pct", "area_max_pct", "support"]
PUBLISHED_SIDE = 1024  # px; BiomedParse's results count areas in images of this size
# folder of BiomedParse's published results -> data set
PUBLISHED = {
    "LIDC-IDRI": "LIDC-IDRI",
    "amos22/CT": "AMOS22-CT",
    "amos22/MRI": "AMOS22-MRI",
    "Task06_Lung": "MSD-Lung",
    "Task07_Pancreas": "MSD-Pancreas",
    "Task08_HepaticVessel": "MSD-HepaticVessel",
    "Task10_Colon": "MSD-Colon",
}


def mask_areas(datasets: Sequence[Dataset], on_progress: Callable[[int, int], None] | None = None) -> pd.DataFrame:
    """One row per mask: side, dataset, object, image_id, area_pct. `on_progress` gets (done, total) masks.

    Raises UserError for a mask that cannot be read.
    """
    import pandas as pd

    items = [
        (side, sample, target)
        for side in SPLITS
        for dataset in datasets
        for sample in getattr(dataset, side)
        for target in sample.targets
    ]
    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shares = pool.map(lambda item: 100 * load_mask(item[2].mask_file).mean(), items)
        for (side, sample, target), share in zip(items, shares, strict=True):
            rows.append((side, sample.dataset, target.object, sample.image_id, float(share)))
            if on_progress is not None:
                on_progress(len(rows), len(items))
    return pd.DataFrame(rows, columns=COLUMNS)


def find_published(folder: Path) -> list[Path]:
    """The files <object>_metrics.csv in and below `folder`; [] where it is a data set or holds some."""
    if any(folder.glob("train.json")) or any(folder.glob("*/train.json")):
        return []
    return sorted(folder.rglob("*_metrics.csv"))


def published_areas(files: Sequence[Path]) -> pd.DataFrame:
    """`mask_areas` of BiomedParse's published results, <object>_metrics.csv with the columns file and area (px).

    Raises UserError for a file that has no such columns.
    """
    import pandas as pd

    frames = []
    for file in files:
        try:
            table = pd.read_csv(file, usecols=["file", "area"])
        except (OSError, ValueError) as error:  # pandas' errors of parsing are ValueErrors
            raise UserError(f"{file} has no areas ({error}); name a file with the columns file and area") from None
        label = file.name.removesuffix("_metrics.csv").replace("+", " ")
        shares = 100 * table["area"] / PUBLISHED_SIDE**2
        frame = pd.DataFrame({"image_id": table["file"], "area_pct": shares})
        frames.append(frame.assign(side="test", dataset=published_name(file.parent), object=label))
    return pd.concat(frames, ignore_index=True)[COLUMNS]


def published_name(folder: Path) -> str:
    """The data set that a folder of BiomedParse's published results is about; the folder's own name for others."""
    parts = folder.resolve().parts
    return PUBLISHED.get(parts[-1]) or PUBLISHED.get("/".join(parts[-2:])) or parts[-1]


def size_table(areas: pd.DataFrame) -> pd.DataFrame:
    """Mean, median, min and max area in percent of the image, and support, by side, data set and object."""
    import pandas as pd

    from reports.aggregate import object_sizes

    tables = []
    for side in SPLITS:
        table = object_sizes(areas[areas["side"] == side])
        table.insert(0, "side", side)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def against_paper(side: str, dataset: str, name: str, sizes: Sequence[float]) -> str:
    """How `sizes` (the columns SIZES) differ from Table 9, which is of the test images, to its digits.

    "equal", or what differs and by how much in percentage points ("mean +0.012, support -3"), or "" where the paper
    has no such row.
    """
    from experiments.paper import TABLE_9

    if side != "test" or (dataset, name) not in TABLE_9:
        return ""
    differences = []
    for label, here, paper in zip(("mean", "median", "min", "max"), sizes[:4], TABLE_9[dataset, name][:4], strict=True):
        difference = round(round(here, 3) - paper, 3)
        if difference:
            differences.append(f"{label} {difference:+.3f}")
    support = int(sizes[4]) - TABLE_9[dataset, name][4]
    differences += [f"support {support:+d}"] if support else []
    return ", ".join(differences) or "equal"


def size_histogram(areas: pd.DataFrame) -> pd.DataFrame:
    """Number of masks by data set and object (rows) and the size bins of the tables (columns), both sides together."""
    import pandas as pd

    from reports.aggregate import object_sizes
    from reports.strata import BINS, members

    inside = members(areas["area_pct"].to_numpy(), BINS)
    counts = pd.DataFrame(inside.astype(int), columns=[group.label for group in BINS])
    counts = counts.groupby([areas["dataset"].to_numpy(), areas["object"].to_numpy()]).sum()
    order = object_sizes(areas)[["dataset", "object"]]
    return counts.loc[list(order.itertuples(index=False, name=None))]


def plot_histogram(areas: pd.DataFrame, title: str, out: Path) -> None:
    """Draws `size_histogram`, a panel per data set with the objects stacked, and saves it as the PNG `out`."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    from bench.atomic import write_file

    histogram = size_histogram(areas)
    names = list(dict.fromkeys(histogram.index.get_level_values(0)))
    objects = sorted(set(histogram.index.get_level_values(1)))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(6 * columns, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for name, axes in zip(names, panels, strict=False):
        bottom = np.zeros(histogram.shape[1])
        for label, counts in histogram.loc[name].iterrows():
            color = colormaps["tab20"](objects.index(label) % 20)  # of an object the same in all panels
            axes.bar(histogram.columns, counts, bottom=bottom, label=label, color=color)
            bottom += counts.to_numpy()
        axes.set_title(f"{name}: {int(bottom.sum()):,} masks", fontsize=9)
        axes.set_ylabel("masks")
        axes.tick_params(axis="x", labelsize=7, rotation=30)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    for axes in panels:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("object area, % of the image", fontsize=9)
    write_file(out, lambda handle: figure.savefig(handle, format="png", dpi=110, metadata={"Software": None}))
