"""A contact sheet of a data set: images with their masks outlined."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.atomic import write_file
from bench.data.dataset import load_dataset, load_image, load_mask
from bench.interface import Sample


def preview(folder: Path, out: Path, count: int = 12) -> Path:
    """Draws `count` samples of `folder`, evenly spread over train and test, and saves them as the PNG `out`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    dataset = load_dataset(folder, allow_leaks=True)  # a look does not need sound sides
    samples = [*dataset.train, *dataset.test]
    chosen = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int))]
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 3.5 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, sample in zip(axes.flat, chosen, strict=False):
        _draw(axis, sample)
    kind = "phantom, generated" if dataset.phantom else "as read"
    figure.suptitle(f"{dataset.name} ({kind})")
    figure.tight_layout()
    write_file(out, lambda handle: figure.savefig(handle, dpi=110, format="png"))
    plt.close(figure)
    return out


def _draw(axis, sample: Sample) -> None:
    axis.imshow(load_image(sample.image_file))
    names = []
    for place, target in enumerate(sample.targets):
        color = f"C{place}"
        mask = load_mask(target.mask_file)
        axis.contour(mask, levels=[0.5], colors=[color], linewidths=0.8)
        names.append(f"{target.object} {100 * mask.mean():.2g}%")
    axis.set_title(sample.image_id + "\n" + ", ".join(names), fontsize=6)
