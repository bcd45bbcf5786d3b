"""What the queries attend to, layer by layer, drawn on the image (Fig. 4 to 8): a figure, one PNG, or a GIF through the
layers.

A token is one patch of the square frame an image is predicted in; sampling.npz keeps the tokens of a few test cases.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from bench.atomic import write_file
from bench.errors import UserError
from bench.limits import load_arrays
from reports.drawing import Drawing, drawing_of
from reports.figures import TRUTH_COLOR, read_case

if TYPE_CHECKING:
    from reports.load import Run, SuiteResults

SAMPLING_FILE = "sampling.npz"
CASE_FIELDS = ("dataset", "object", "image_id", "image_file", "mask_file", "height", "width")
GAP, TEXT = 6, 12  # px between panels, and of the letters
LINES = 24  # rows of a report's figure, unless one case has more


@dataclass(frozen=True)
class SampledLayer:
    """One decoder layer of one prompt.

    share: (g, g) float32 in 0..1, the share of the queries that kept each token; rule: how it was chosen, in
    words ("temperature 0.5").
    """

    share: np.ndarray
    rule: str


@dataclass(frozen=True)
class SamplingRow:
    """One prompt on one image: (H, W, 3) uint8, the (H, W) bool mask to outline, and the layers in order."""

    label: str
    image: np.ndarray
    mask: np.ndarray
    layers: Sequence[SampledLayer]


@dataclass(frozen=True)
class SampledCase:
    """A test target of a run with the layers of its prompt; the files are relative to the data set's folder."""

    dataset: str
    object: str
    image_id: str
    image_file: str
    mask_file: str
    height: int
    width: int
    layers: Sequence[SampledLayer]


def sampling_figure(rows: Sequence[SamplingRow], title: str, side: int = 176) -> Drawing:
    """The figure of a report, with one line per row: the image, then every layer. Pictures are `side` px wide."""
    from matplotlib.figure import Figure

    columns = 1 + max(len(row.layers) for row in rows)
    figure = Figure(figsize=(1.75 * columns, 2.6 * len(rows) + 0.4), layout="constrained")
    for part, row in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        part.suptitle(row.label, fontsize=8, parse_math=False)
        for layer, axes in zip((None, *range(columns - 1)), part.subplots(1, columns, squeeze=False)[0], strict=True):
            axes.set_axis_off()
            if layer is None or layer < len(row.layers):
                axes.imshow(_picture(row, layer, side), interpolation="none")
                axes.set_title(_caption(row, layer), fontsize=6, parse_math=False)
    figure.suptitle(title, fontsize=9)
    return drawing_of(figure)


def sampling_png(rows: Sequence[SamplingRow], title: str, side: int = 176) -> bytes:
    """PNG with one line per row: the image, then every layer. Panels are `side` px wide."""
    lines = [_heading(title, (side + GAP) * (1 + max(len(row.layers) for row in rows)))]
    for row in rows:
        panels = _beside([_panel(row, layer, side) for layer in (None, *range(len(row.layers)))])
        lines += [_heading(row.label, panels.width), panels]
    buffer = io.BytesIO()
    _below(lines).save(buffer, "PNG")
    return buffer.getvalue()


def sampling_gif(rows: Sequence[SamplingRow], title: str, side: int = 320) -> bytes:
    """Endless GIF, one frame per layer, the rows side by side; the last layer stays longer."""
    frames = []
    for layer in range(max(len(row.layers) for row in rows)):
        cells = [_below([_heading(row.label, side), _panel(row, layer, side)]) for row in rows]
        lines = [_beside(cells[start : start + 3]) for start in range(0, len(cells), 3)]
        frames.append(_below([_heading(title, lines[0].width), *lines]))
    buffer = io.BytesIO()
    durations = [900] * (len(frames) - 1) + [2500]  # ms
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return buffer.getvalue()


def outline(mask: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool -> (H, W) bool: a line of `width` px just outside the mask, so that the object itself stays seen."""
    return ndimage.binary_dilation(mask, ndimage.generate_binary_structure(2, 2), iterations=width) & ~mask


def save_cases(cases: Sequence[SampledCase], path: Path) -> None:
    """Writes what `load_cases` reads: text as JSON, and one array (g, g) per case and layer."""
    texts = [
        {**{name: getattr(case, name) for name in CASE_FIELDS}, "rules": [layer.rule for layer in case.layers]}
        for case in cases
    ]
    shares = {f"{place}.{at}": layer.share for place, case in enumerate(cases) for at, layer in enumerate(case.layers)}
    write_file(path, lambda handle: np.savez_compressed(handle, cases=json.dumps(texts), **shares))


def load_cases(path: Path) -> list[SampledCase]:
    """What `save_cases` wrote. Raises UserError for a file that is not that."""
    try:
        saved, cases = load_arrays(path), []
        for place, text in enumerate(json.loads(str(saved["cases"]))):
            rules = text.pop("rules")
            layers = [SampledLayer(saved[f"{place}.{at}"], rule) for at, rule in enumerate(rules)]
            cases.append(SampledCase(**text, layers=layers))
        return cases
    except Exception as error:  # numpy, zipfile and zlib raise whatever a broken file leads them to
        raise UserError(f"{path} cannot be read ({error}): delete it; the next run of the trial writes it") from None


def suite_rows(results: SuiteResults) -> tuple[list[SamplingRow], list[str]]:
    """The cases that the runs of a suite left, each method's below the other's, and notes on those not drawn.

    Of each method and backbone the first run (seed) with a sampling.npz speaks; the truth is outlined. As many cases as
    `LINES` rows hold, and one at least.
    """
    first: dict[tuple[str, str], Run] = {}
    for run in results.runs:
        if run.state == "finished" and (run.folder / SAMPLING_FILE).is_file():
            first.setdefault((run.method, run.backbone), run)
    rows, notes = {}, []
    for run in first.values():
        label = results.label(run.method, run.backbone)
        try:
            cases = load_cases(run.folder / SAMPLING_FILE)
        except UserError as error:
            notes.append(f"sampling: {label} is not drawn: {error}")
            continue
        for case in cases:
            name = f"{case.dataset}, {case.object}"
            try:
                files = {"image_file": case.image_file, "mask_file": case.mask_file}
                image, truth = read_case(results.data[case.dataset], files, (case.height, case.width))
            except (UserError, KeyError, ValueError) as error:
                notes.append(f"sampling: {case.image_id}, {name} is not drawn: {error}")
                continue
            title = f"{label}: {name}, {100 * truth.mean():.2g}% of the image"
            # cases first, so that the methods can be compared on one image
            rows.setdefault((case.dataset, case.image_id, case.object), []).append(
                SamplingRow(title, image, truth, case.layers)
            )
    together = np.cumsum([len(case) for case in rows.values()])
    shown = max(1, int((together <= LINES).sum()))
    if (left := len(rows) - shown) > 0:
        notes.append(f"sampling: {left} more cases are not drawn, {LINES} rows hold no more; `bench predict` draws any")
    return [row for case in list(rows.values())[:shown] for row in case], list(dict.fromkeys(notes))


def _panel(row: SamplingRow, layer: int | None, side: int) -> Image.Image:
    """`_picture` in a square of `side` px, and its caption below."""
    picture = _picture(row, layer, side)
    canvas = Image.new("RGB", (side, side + 4 * TEXT), "white")
    canvas.paste(Image.fromarray(picture))
    ImageDraw.Draw(canvas).text((1, len(picture) + 2), _caption(row, layer), "black", _font(TEXT - 2), spacing=1)
    return canvas


def _picture(row: SamplingRow, layer: int | None, side: int) -> np.ndarray:
    """(h, w, 3) uint8, the longer side `side` px: the image, dark where no query of the layer looks, truth outlined."""
    height, width = row.mask.shape
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = np.asarray(Image.fromarray(row.image).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    if layer is not None and layer < len(row.layers):
        share = row.layers[layer].share
        grid = share.shape[0]
        token = (np.arange(side) * grid) // side  # the token of each px: the grid covers the padded square
        share = share[np.ix_(token[: size[1]], token[: size[0]])][..., None]
        # a kept patch is lifted from black, or it could not be told on the black around a body
        picture = np.where(share > 0, 44 + picture * (0.35 + 0.47 * np.sqrt(share)), 0.16 * picture)
    # any cover counts: an object smaller than a px of the panel must not vanish
    cover = np.asarray(Image.fromarray(row.mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) > 0
    picture[outline(cover, max(1, side // 160))] = [int(TRUTH_COLOR[at : at + 2], 16) for at in (1, 3, 5)]
    return picture.astype(np.uint8)


def _caption(row: SamplingRow, layer: int | None) -> str:
    if layer is None or layer >= len(row.layers):
        return "the image"
    kept = row.layers[layer].share
    return (
        f"layer {layer + 1}, {len(kept)} x {len(kept)} tokens\n{row.layers[layer].rule}\n"
        f"kept {100 * kept.mean():.3g}%, by any query {100 * (kept > 0).mean():.3g}%"
    )


def _heading(text: str, width: int) -> Image.Image:
    """Text in lines of at most `width` px, broken between words."""
    font, lines = _font(TEXT), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    canvas = Image.new("RGB", (width, (TEXT + 4) * len(lines) + 2), "white")
    ImageDraw.Draw(canvas).text((1, 1), "\n".join(lines), "black", font, spacing=1)
    return canvas


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    width = sum(picture.width + GAP for picture in pictures) - GAP
    canvas = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + GAP
    return canvas


def _below(pictures: Sequence[Image.Image]) -> Image.Image:
    height = sum(picture.height for picture in pictures)
    canvas = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    # Pillow's own has ASCII only, and prompts are in any script
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
