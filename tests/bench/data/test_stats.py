import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from bench import cli
from bench.data.dataset import load_dataset
from bench.data.stats import (
    SIZES,
    against_paper,
    find_published,
    mask_areas,
    published_areas,
    size_histogram,
    size_table,
)
from bench.errors import UserError
from experiments.paper import TABLE_9


def stats(*words):
    return CliRunner().invoke(cli.app, ["data", "stats", *map(str, words)], catch_exceptions=False)


def test_the_published_test_masks_give_all_rows_of_table_9(shared):
    folder = shared / "data" / "biomedparse_results"
    areas = published_areas(find_published(folder))
    assert len(areas) == 40_339
    table = size_table(areas)
    here = {(row[1], row[2]): [*(f"{size:.3f}" for size in row[3:7]), row[7]] for row in table.values.tolist()}
    paper = {pair: [*(f"{size:.3f}" for size in row[:4]), row[4]] for pair, row in TABLE_9.items()}
    assert len(paper) == 38 and here == paper
    result = stats(folder)
    assert result.exit_code == 0
    assert sum(line.rstrip().endswith("equal") for line in result.output.splitlines()) == 38


def test_sizes_and_bins_of_masks_by_hand(toy):
    """Against the PNGs read and counted one by one."""
    areas = mask_areas([load_dataset(toy)])
    for side, count in (("train", 10), ("test", 4)):
        for name in ("block", "dark disc"):
            files = sorted((toy / f"{side}_mask").glob(f"*_{name.replace(' ', '+')}.png"))
            shares = [100 * np.count_nonzero(np.array(Image.open(file))) / (48 * 40) for file in files]
            row = size_table(areas).set_index(["side", "dataset", "object"]).loc[(side, "toy", name)]
            expected = [np.mean(shares), np.median(shares), min(shares), max(shares), count]
            assert row[SIZES].tolist() == pytest.approx(expected)
    histogram = size_histogram(areas)
    assert histogram.loc[("toy", "block")].to_dict() == {
        "<0.05%": 0, "0.05-0.1%": 0, "0.1-0.25%": 0, "0.25-0.5%": 0, "0.5-1%": 0, "1-5%": 14, ">=5%": 0,
    }  # fmt: skip
    assert histogram.to_numpy().sum() == len(areas) == 28


def test_a_mask_on_an_edge_is_in_the_bin_above():
    areas = pd.DataFrame({"dataset": "a", "object": "o", "image_id": range(4), "area_pct": [0.05, 0.999, 1.0, 5.0]})
    assert size_histogram(areas).loc[("a", "o")].tolist() == [0, 1, 0, 0, 1, 1, 1]


def test_differences_from_the_paper_are_told_in_its_digits():
    row = (0.0591, 0.029, 0.0024, 0.802, 1733)
    assert against_paper("test", "LIDC-IDRI", "nodule", row) == "equal"
    other = (0.0716, 0.029, 0.002, 0.7, 1730)
    assert against_paper("test", "LIDC-IDRI", "nodule", other) == "mean +0.013, max -0.102, support -3"
    assert against_paper("train", "LIDC-IDRI", "nodule", row) == ""
    assert against_paper("test", "toy", "nodule", row) == ""


def test_the_command_prints_sizes_and_bars_and_draws(toy, tmp_path):
    plot = tmp_path / "plots" / "sizes.png"
    result = stats(toy, "--plot", plot)
    assert result.exit_code == 0
    words = " ".join(result.output.split())
    assert "test toy block 2.500 2.500 2.500 2.500 4" in words
    assert "against Table 9" not in words  # no data set of the paper
    assert "1-5% 28 100.0% " + "█" * 40 in words
    with Image.open(plot) as image:
        assert image.format == "PNG" and min(image.size) > 300


def test_a_data_set_of_the_paper_is_compared(toy):
    folder = toy.rename(toy.parent / "MSD-Lung")
    for split in ("train", "test"):
        content = json.loads((folder / f"{split}.json").read_text())
        for annotation in content["annotations"]:
            annotation["object"] = {"block": "tumor"}.get(annotation["mask_file"][10:-4], "other")
        (folder / f"{split}.json").write_text(json.dumps(content))
    result = stats(folder)
    assert "mean +2.217, median +2.300, min +2.489, max +1.438, support -238" in " ".join(result.output.split())


def test_results_without_areas_are_one_line(tmp_path):
    (tmp_path / "nodule_metrics.csv").write_text("file,dice\na,1\n")
    with pytest.raises(UserError, match=r"nodule_metrics\.csv has no areas"):
        stats(tmp_path)
