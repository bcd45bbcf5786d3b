"""How often the tokens that a layer attends to lie on the object: `python -m experiments.object_tokens RUN ...`.

Sampling of a tenth of the tokens keeps a tenth of the object's, too, if it knows nothing of it. What it knows shows in
how many times more often it keeps those: at the temperature tau at most exp(1 / tau) times as likely in a draw (Eq. 5,
confidences lie in 0 to 1), and less where the model is not sure.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from bench.errors import UserError
from bench.options import RunsDir


def object_tokens(run_dir: Path, masks: int) -> pd.DataFrame:
    """One row per decoder layer of a finished run with its weights, over at most `masks` of its test masks.

    Columns: layer (from 1), tokens (of the grid, "8 x 8"), rule ("temperature 0.5"), kept_pct (of all tokens, by a
    query on average), object_pct (the same of those tokens that the mask touches) and times (the second by the first).
    Raises UserError for a run that chooses no tokens, or whose weights or data are not there.
    """
    from bench.data.dataset import load_image, load_mask
    from bench.data.geometry import image_to_square, mask_to_square
    from bench.data.splits import load_splits
    from bench.environment import seed_everything
    from bench.predict import generator_for
    from bench.predict_image import load_segmenter, segmenter_spec
    from bench.sampling import chooses_tokens, predict_sampled

    spec = segmenter_spec(run_dir)
    splits = load_splits(run_dir.parent / "splits.json")
    seed_everything(spec.seed)
    method = load_segmenter(spec, run_dir)
    model = method.model.eval()
    if not chooses_tokens(model):
        raise UserError(f"{run_dir} attends to every token: name a run of boltzformer or seem")
    device = next(model.parameters()).device
    size = method.recipe.image_size
    targets = [(sample, target) for sample in splits.test for target in sample.targets]
    found, layers = [], []
    for at in np.unique(np.linspace(0, len(targets) - 1, min(masks, len(targets))).round().astype(int)):
        sample, target = targets[at]
        square = image_to_square(load_image(sample.image_file), size)
        mask = mask_to_square(load_mask(target.mask_file), size)
        generator = generator_for(sample.image_id, target.prompts[0], spec.seed, device)
        _, (layers,) = predict_sampled(model, square, target.prompts[:1], method.recipe.precision, [generator])
        if mask.any():
            found.append([kept_of(layer.share, mask) for layer in layers])
    if not found:
        raise UserError(f"{run_dir}: the test split has no mask that holds an object")
    percent = 100 * np.mean(found, axis=0)
    return pd.DataFrame(
        {
            "layer": range(1, len(layers) + 1),
            "tokens": [f"{len(layer.share)} x {len(layer.share)}" for layer in layers],
            "rule": [layer.rule for layer in layers],
            "kept_pct": percent[:, 0],
            "object_pct": percent[:, 1],
            "times": percent[:, 1] / percent[:, 0],
        }
    )


def kept_of(share: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """The means of `share`, (g, g), over all tokens and over those that `mask`, (s, s) bool, touches; g divides s."""
    grid = len(share)
    touched = mask.reshape(grid, len(mask) // grid, grid, -1).any(axis=(1, 3))
    return float(share.mean()), float(share[touched].mean())


def main(
    runs: Annotated[list[str], typer.Argument(help="Runs' folders, or the beginnings of their names.", metavar="RUN")],
    masks: Annotated[int, typer.Option(help="Test masks at most, spread over the split.", min=1)] = 200,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """How often the tokens that each layer attends to lie on the object, against how often they would by chance."""
    from bench.predict_image import find_run
    from bench.terminal import terminal_console, text_table

    warnings.simplefilter("ignore", FutureWarning)  # what libraries tell their developers
    console = terminal_console()
    try:
        for name in runs:
            run_dir = find_run(name, runs_dir)
            frame = object_tokens(run_dir, masks)
            rows = [
                [str(row.layer), row.tokens, row.rule, *(f"{x:.1f}" for x in (row.kept_pct, row.object_pct, row.times))]
                for row in frame.itertuples()
            ]
            headers = ["layer", "tokens", "rule", "kept, %", "kept of the object's, %", "times"]
            console.print(run_dir.name, text_table(headers, rows), sep="\n", highlight=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
