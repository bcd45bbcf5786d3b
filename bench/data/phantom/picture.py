"""The picture of the README: the same patients at every difficulty, targets outlined.

python -m bench.data.phantom.picture docs/phantom.png
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from bench.atomic import write_file
from bench.data.phantom.difficulty import PHANTOMS
from bench.data.phantom.plan import BOTH_SIDES, plan_split
from bench.data.phantom.render import render_slice
from experiments.paper import TABLE_9

COLUMNS = ("LIDC-IDRI", "MSD-Lung", "MSD-HepaticVessel", "MSD-Pancreas", "MSD-Colon", "AMOS22-CT", "AMOS22-MRI")
SIZE = 256  # px of a slice


def draw_picture(out: Path, seed: int = 1) -> Path:
    """Writes the PNG `out`: a row per difficulty, a column per data set, one slice each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(PHANTOMS), len(COLUMNS), figsize=(1.5 * len(COLUMNS), 1.6 * len(PHANTOMS)))
    for column, dataset in enumerate(COLUMNS):
        names = [name for row, name in TABLE_9 if row == dataset]
        plan = max(plan_split(dataset, names, 1, 6, 1, seed), key=lambda plan: len(plan.areas))
        for row, (name, difficulty) in enumerate(PHANTOMS.items()):
            axis = axes[row, column]
            image, masks = render_slice(plan, SIZE, seed, difficulty)
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            shown = [mask for target, mask in masks.items() if target not in BOTH_SIDES]
            for number, mask in enumerate(shown):
                axis.contour(mask, levels=[0.5], colors=[f"C{number % 10}"], linewidths=0.7)
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(dataset, fontsize=7)
            if column == 0:
                axis.set_ylabel(name, fontsize=7)
    figure.tight_layout(pad=0.3)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    plt.close(figure)
    small = Image.open(drawn).convert("RGB").quantize(96, dither=Image.Dither.NONE)
    write_file(out, lambda handle: small.save(handle, format="PNG", optimize=True))
    return out


if __name__ == "__main__":
    print(draw_picture(Path(sys.argv[1])))
