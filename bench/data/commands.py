"""The commands of `bench data`. Each imports what it needs when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.data.prepare.commands import prepare_app
from bench.errors import UserError
from bench.options import names
from bench.terminal import progress_bar, terminal_console, text_table

data_app = typer.Typer(help="Prepare data sets and look at them.", no_args_is_help=True, rich_markup_mode=None)
data_app.add_typer(prepare_app, name="prepare")
WHERE = "Data set folders (with train.json), or folders of such; or URLs of them, mirrored under runs/data."
Folders = Annotated[list[str], typer.Argument(help=WHERE, metavar="DIR")]


@data_app.command()
def check(
    folders: Folders,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write every problem into this file, too.", metavar="FILE", dir_okay=False),
    ] = None,
) -> None:
    """Look for every problem of data sets at once: exit code 2 and a table of them with their fixes, 0 where there is
    none.

    \b
    Files: missing, unreadable, truncated, Git-LFS pointers, outside the folder; images without mask, masks without
    annotation. Pixels: image or mask of a wrong size, masks that are empty or not binary or not of the area stated.
    Annotations: duplicate ids, an object annotated twice in an image, prompts that name another object. Sides: a
    patient in train and test, a test image that shows the same picture as a training image.

    \b
    Examples:
      bench data check data/openkbp data/idrid
      bench data check data --json problems.json
    """
    from bench.atomic import write_json
    from bench.data.check import check_datasets
    from bench.data.storage import datasets_at
    from bench.show_plan import show_problems

    console = terminal_console()
    found = datasets_at(folders)
    with progress_bar(console, "reading images and masks") as on_progress:
        problems = check_datasets(found, on_progress)
    if json_file is not None:
        write_json(json_file, {"folders": [str(p) for p in found], "problems": [vars(p) for p in problems]})
    if problems:
        show_problems(problems, console)
        raise typer.Exit(2)
    console.print(f"no problems in {len(found)} data set{'s' * (len(found) != 1)}: {', '.join(p.name for p in found)}")


@data_app.command()
def split(
    folders: Annotated[
        list[str] | None,
        typer.Argument(help=f"{WHERE} Without: only the lists are looked at.", metavar="DIR"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw of the validation patients.", min=0)] = 0,
    val_fraction: Annotated[
        float, typer.Option(help="Share of the training patients that is held out for validation.", min=0.01, max=0.9)
    ] = 0.2,
    official: Annotated[
        list[Path] | None,
        typer.Option(
            help="The authors' mask_stats.csv (columns split, fname) of a data set: its lists are train and test; "
            "may be repeated.",
            metavar="FILE",
        ),
    ] = None,
    keep_leaks: Annotated[
        bool,
        typer.Option(
            "--keep-leaks",
            help="Keep patients in train who are in test, too: the paper's sides exactly. Scans that `bench data "
            "prepare` left out are not in the folder and do not come back.",
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option(help="The file to write, for `bench run --splits`.", metavar="FILE", dir_okay=False)
    ] = Path("splits.json"),
) -> None:
    """Split data sets into train, validation and test by patient, and name the split by a hash.

    Test is as published (the folders, or --official); validation is drawn from the training patients. Patients in
    train and in test are left out of train, and told.

    \b
    Examples:
      bench data split data/openkbp data/idrid
      bench data split data/LIDC-IDRI --official mask_stats.csv
      bench data split --official mask_stats.csv
    """
    from bench.data.official import notes
    from bench.data.splits import split_folders
    from bench.data.storage import datasets_at

    console = terminal_console()
    if not folders:
        if not official:
            raise UserError("nothing to split: name data set folders, or lists with --official")
        return _show_lists(official)
    splits = split_folders(datasets_at(folders), seed, val_fraction, official or (), keep_leaks)
    rows = []
    for name in splits.roots:
        for side, samples in splits.sides().items():
            own = [sample for sample in samples if sample.dataset == name]
            masks = sum(len(sample.targets) for sample in own)
            rows.append([name, side, f"{len(own):,}", f"{len({s.patient for s in own}):,}", f"{masks:,}"])
    console.print(text_table(["data set", "side", "images", "patients", "masks"], rows))
    for name, provenance in splits.provenance.items():
        for line in notes(name, provenance):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    splits.save(out)
    console.print(f"split {splits.hash} (seed {seed}): bench run --splits {out}", highlight=False, soft_wrap=True)


def _show_lists(files: list[Path]) -> None:
    """The authors' lists by themselves: how much is on each side, and which patients are on both."""
    from bench.data.official import leak_sentence, leaking_images, read_list, sides_of

    console = terminal_console()
    rows, lines = [], []
    for file in files:
        name = f"{file.resolve().parent.name}/{file.name}"
        masks = read_list(file)
        for side, found in sides_of(masks).items():
            rows.append([name, side, f"{len(found.images):,}", f"{len(found.patients):,}", f"{found.masks:,}"])
        leaks = leaking_images(masks)
        lines.append(f"{name}: {leak_sentence(leaks) if leaks else 'no patient is in train and in test'}")
        if leaks:
            images = sum(counts["train"] for counts in leaks.values())
            lines.append(f"{name}: their training images ({images}) are left out by default; --keep-leaks keeps them")
    console.print(text_table(["list", "side", "images", "patients", "masks"], rows))
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@data_app.command()
def stats(
    folders: Annotated[
        list[str],
        typer.Argument(
            help=f"{WHERE} Or folders of BiomedParse's published results (<object>_metrics.csv).", metavar="DIR"
        ),
    ],
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw the histogram by data set and object into this PNG, too.", metavar="FILE", dir_okay=False
        ),
    ] = None,
) -> None:
    """Print the objects of data sets with their sizes as the paper's Table 9 does, and a histogram by size.

    The last column says how the test images of a data set of the paper differ from its row of Table 9.

    \b
    Examples:
      bench data stats data/openkbp
      bench data stats data --plot sizes.png
    """
    import pandas as pd

    from bench.data.dataset import find_datasets, load_dataset
    from bench.data.stats import (
        SIZES,
        against_paper,
        find_published,
        mask_areas,
        plot_histogram,
        published_areas,
        size_histogram,
        size_table,
    )
    from bench.data.storage import CACHE, local_folders

    console = terminal_console()
    places = local_folders(folders, CACHE)
    published = {folder: found for folder in places if (found := find_published(folder))}
    own = [folder for folder in places if folder not in published]
    datasets = [load_dataset(folder, allow_leaks=True) for folder in find_datasets(own)]
    with progress_bar(console, "reading masks") as on_progress:
        frames = [mask_areas(datasets, on_progress)] if datasets else []
    frames += [published_areas(files) for files in published.values()]
    areas = pd.concat(frames, ignore_index=True)
    table = size_table(areas)
    compared = [
        against_paper(*row[:3], row[3:]) for row in table[["side", "dataset", "object", *SIZES]].values.tolist()
    ]
    headers = ["side", "data set", "object", "mean %", "median %", "min %", "max %", "support"]
    rows = [[*row[:3], *(f"{size:.3f}" for size in row[3:7]), f"{row[7]:,}"] for row in table.values.tolist()]
    if any(compared):
        headers.append("against Table 9")
        rows = [[*row, text] for row, text in zip(rows, compared, strict=True)]
    phantom = [dataset.name for dataset in datasets if dataset.phantom]
    title = f"object sizes (phantom: {', '.join(phantom)})" if phantom else "object sizes"
    sizes = text_table(headers, rows)
    sizes.title = title
    console.print(sizes)
    console.print(_histogram_table(size_histogram(areas)))
    if plot is not None:
        plot_histogram(areas, title, plot)
        console.print(f"written to {plot}", highlight=False, soft_wrap=True)


def _histogram_table(histogram):
    """Masks by size bin, a row of bars per data set."""
    rows = []
    for name, counts in histogram.groupby(level=0, sort=False).sum().iterrows():
        for place, (label, count) in enumerate(counts.items()):
            share = count / counts.sum()
            rows.append([name if place == 0 else "", label, f"{count:,}", f"{share:.1%}", "█" * round(40 * share)])
    return text_table(["data set", "size", "masks", "share", ""], rows)


@data_app.command()
def preview(
    folder: Annotated[str, typer.Argument(help="A data set folder, or a URL of one.", metavar="DIR")],
    out: Annotated[
        Path | None,
        typer.Option(help="The PNG to write; default: <data set>-preview.png here.", metavar="FILE", dir_okay=False),
    ] = None,
    count: Annotated[int, typer.Option(help="How many images.", min=1, max=400)] = 12,
) -> None:
    """Draw a sheet of images with their masks outlined.

    \b
    Example:
      bench data preview data/openkbp --count 20 --out openkbp.png
    """
    from bench.data.preview import preview as draw
    from bench.data.storage import datasets_at

    found = datasets_at([folder])
    if len(found) > 1:
        raise UserError(f"{folder} holds {len(found)} data sets: name one of {', '.join(p.name for p in found)}")
    print(draw(found[0], out or Path(f"{found[0].name}-preview.png"), count))


@data_app.command()
def phantom(
    out: Annotated[Path, typer.Option(help="The folder to write; it gets one folder per data set.", metavar="DIR")],
    difficulty: Annotated[str, typer.Option(help="default, easy or hard.")] = "default",
    objects: Annotated[
        str | None, typer.Option(help="Only these of Table 9, e.g. nodule,tumor,vessel.", metavar="A,B")
    ] = None,
    patients: Annotated[int, typer.Option(help="Training patients per data set.", min=3)] = 6,
    test_patients: Annotated[
        int | None, typer.Option(help="Test patients per data set; default: a third of --patients.", min=1)
    ] = None,
    slices: Annotated[int, typer.Option(help="Neighbouring slices per patient.", min=1)] = 3,
    size: Annotated[int, typer.Option(help="Pixels per side of an image.", min=64, max=2048)] = 256,
    seed: Annotated[int, typer.Option(help="Another seed, other patients.", min=0)] = 0,
) -> None:
    """Generate a phantom to look at or to train on: the paper's seven data sets, all 38 objects.

    \b
    Object areas follow Table 9. Easy has more contrast, less noise and fewer look-alikes, hard the opposite. The same
    options give the same bytes.

    \b
    Examples:
      bench data phantom --difficulty hard --out hard
      bench data preview hard/MSD-HepaticVessel
      bench data phantom --objects nodule,tumor,vessel --patients 40 --test-patients 60 --out lesions
    """
    from bench.data.phantom import PHANTOMS, generate, objects_by_dataset
    from bench.errors import unknown_name
    from bench.spec import PhantomSize

    name = "phantom" if difficulty == "default" else f"phantom-{difficulty}"
    if name not in PHANTOMS:
        raise unknown_name(
            "difficulty", difficulty, ["default", *(p.removeprefix("phantom-") for p in PHANTOMS if "-" in p)]
        )
    if test_patients is None:
        test_patients = patients // 3
    wanted = PhantomSize(image_size=size, patients=patients, test_patients=test_patients, slices=slices, seed=seed)
    only = None if objects is None else objects_by_dataset(names(objects) or [objects])
    with progress_bar(terminal_console(), f"generating {name}") as on_progress:
        folders = generate(out, wanted, only, on_progress, PHANTOMS[name])
    for folder in folders:
        print(folder)
