"""`bench predict`: a trained model on an image of the user's own."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench.options import RunsDir
from bench.terminal import terminal_console, text_table


class Axis(StrEnum):
    """The direction a volume is cut across."""

    axial = "axial"
    coronal = "coronal"
    sagittal = "sagittal"


def predict(
    image: Annotated[
        Path,
        typer.Argument(help="PNG, JPEG, NIfTI (.nii, .nii.gz) or DICOM file.", metavar="IMAGE", show_default=False),
    ],
    prompt: Annotated[
        list[str], typer.Option(help="What to look for; may be repeated.", metavar="TEXT", show_default=False)
    ],
    checkpoint: Annotated[
        str,
        typer.Option(
            help="Whose model: a run's folder, the model.pt in it, or the beginning of its name under --runs-dir.",
            metavar="RUN",
            show_default=False,
        ),
    ],
    show_sampling: Annotated[
        bool,
        typer.Option(
            "--show-sampling", help="Also draw the patches each layer attends to: sampling.png, sampling.gif."
        ),
    ] = False,
    target: Annotated[
        list[Path] | None,
        typer.Option(help="True mask PNG that --show-sampling outlines; one per prompt.", metavar="PNG"),
    ] = None,
    index: Annotated[
        int | None,
        typer.Option("--slice", help="Slice of a NIfTI volume or frame of a DICOM, from 0; default: the middle one."),
    ] = None,
    axis: Annotated[Axis | None, typer.Option(help="How a NIfTI volume is cut; default: axial.")] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="Grey values shown: CENTER,WIDTH or abdomen, lung, pelvis, liver, colon, pancreas, mediastinum, bone, "
            "brain; default: the header's, for other CT abdomen, else the 0.5th to 99.5th percentile.",
            metavar="C,W|NAME",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default: <image>-prediction here.", metavar="DIR")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Segment what prompts name in one image, with the model of a run.

    Writes a mask (0 and 255, at the image's own resolution) and an overlay for each prompt. Confidence is the mean
    probability over the mask's pixels, or the highest of the image where the mask is empty. Prompts are answered
    together; the same image, prompts and run give the same masks, bit for bit.

    A slice of a volume is shown as radiologists do, and so are its masks: head or front up, the patient's right on
    the left (sagittal: front on the left). Slices count from feet to head, back to front, left to right.

    \b
    Examples:
      bench predict scan.png --prompt "lung nodule in CT" --checkpoint main/boltzformer
      bench predict ct.nii.gz --slice 40 --window lung --prompt "lung nodule in CT" --checkpoint main/boltzformer
      bench predict mr.dcm --prompt spleen --prompt aorta --checkpoint runs/main/RUN --show-sampling
    """
    from bench.predict_image import predict_image

    console = terminal_console()
    with console.status("loading the model and predicting"):
        done = predict_image(
            image,
            prompt,
            checkpoint,
            runs_dir,
            out,
            index=index,
            axis=axis and axis.value,
            window=window,
            show_sampling=show_sampling,
            targets=tuple(target or ()),
        )
    height, width = done.size
    rows = []
    for found in done.masks:
        area = int(found.mask.sum())
        text = f"{area:,} px, {100 * area / (height * width):.3g}%" if area else "empty: no pixel above 0.5"
        confidence = f"{found.confidence:.2f}" if area else f"at most {found.confidence:.2f}"
        # as a shell understands it: both files of a prompt in the width of one
        files = found.mask_file.name.removesuffix("mask.png") + "{mask,overlay}.png"
        rows.append([found.prompt, confidence, text, files])
    console.print(text_table(["prompt", "confidence", "area", "files"], rows))
    for name, text in (
        ("image", f"{image}, {width} x {height} px, {done.read}"),
        ("model", str(done.run_dir)),
        ("folder", f"{done.masks[0].mask_file.parent}{os.sep}"),
        ("sampling", ", ".join(map(str, done.sampling_files))),
    ):
        if text:
            console.print(f"{name:8} {text}", highlight=False, soft_wrap=True, markup=False)
