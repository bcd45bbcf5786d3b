"""The authors' train and test lists (mask_stats.csv)."""

from __future__ import annotations

from pathlib import Path

from bench.data.dataset import SPLITS
from bench.errors import UserError


def read_list(file: Path) -> dict[str, str]:
    """Mask file name -> "train" or "test", as the columns fname and split say.

    Raises UserError for a file that is no such list, and for an image on both sides.
    """
    import pandas as pd

    try:
        table = pd.read_csv(file, dtype=str)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist: name the authors' mask_stats.csv of this data set") from None
    except (OSError, ValueError) as error:  # pandas' errors of parsing are ValueErrors
        raise UserError(f"{file} cannot be read as CSV ({error}): name the authors' mask_stats.csv") from None
    missing = [name for name in ("split", "fname") if name not in table]
    if missing:
        raise UserError(f"{file} has no column '{missing[0]}': name a mask_stats.csv (columns split, fname)")
    rows = pd.DataFrame({"stem": table["fname"].str.rsplit("_", n=1).str[0], "side": table["split"]}).drop_duplicates()
    unknown = rows[~rows["side"].isin(SPLITS)]
    if len(unknown):
        raise UserError(f"{file}: '{unknown['side'].iloc[0]}' is no side: the column split says train or test")
    both = rows[rows["stem"].duplicated()]
    if len(both):
        raise UserError(f"{file}: {both['stem'].iloc[0]} is in train and in test: take one of them out")
    return dict(zip(table["fname"], table["split"], strict=True))


def official_sides(file: Path) -> dict[str, str]:
    """Image stem -> "train" or "test"; raises as `read_list`."""
    return {image_of(name): side for name, side in read_list(file).items()}


def image_of(mask_name: str) -> str:
    """The stem of a mask's image: "lung_001_231_CT_lung_tumor.png" -> "lung_001_231_CT_lung"."""
    return mask_name.rsplit("_", 1)[0]
