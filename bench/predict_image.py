"""`bench predict`: one image and its prompts through the model of a run, written as masks and pictures of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bench.atomic import write_file
from bench.data.dataset import load_mask
from bench.data.images import read_image
from bench.errors import UserError, unknown_name
from bench.execute import run_state
from bench.methods import METHODS
from bench.spec import RunSpec
from bench.suite_folder import read_spec

if TYPE_CHECKING:
    from bench.train import TrainedSegmenter

CHECKPOINT = "model.pt"  # as in bench.train, which imports torch
OVERLAY_SIDE = 768  # px; smaller images are enlarged by a whole factor up to this


@dataclass(frozen=True)
class PromptMask:
    """The answer to one prompt: (H, W) bool at the image's own resolution.

    confidence: the mean probability over the mask's pixels; where the mask is empty, the highest of the image.
    """

    prompt: str
    mask: np.ndarray
    confidence: float
    mask_file: Path
    overlay_file: Path


@dataclass(frozen=True)
class ImagePrediction:
    """What `predict_image` did. `read` says how the image was read; `sampling_files` is empty unless asked for."""

    run_dir: Path
    read: str
    size: tuple[int, int]
    masks: tuple[PromptMask, ...]
    sampling_files: tuple[Path, ...]


def predict_image(
    file: Path,
    prompts: Sequence[str],
    checkpoint: str,
    runs_dir: Path,
    out: Path | None = None,
    *,
    index: int | None = None,
    axis: str | None = None,
    window: str | None = None,
    show_sampling: bool = False,
    targets: Sequence[Path] = (),
) -> ImagePrediction:
    """Predicts `prompts` on the image in `file` with the run `checkpoint` (see `find_run`) and writes the files.

    `out` is a folder, by default "<image>-prediction" here; index, axis and window are those of `read_image`.
    `targets` are mask PNGs in the order of the prompts that `show_sampling` outlines instead of the predicted ones.
    The same image name, prompts and run give the same bits. Raises UserError for everything the user can mend.
    """
    prompts = _checked(prompts)
    run_dir = find_run(checkpoint, runs_dir)
    spec = segmenter_spec(run_dir)
    image, read = read_image(file, index, axis, window)
    truths = _targets(targets, prompts, image.shape[:2], show_sampling)
    folder = out if out is not None else Path(f"{image_id(file)}-prediction")
    mask_files = [(folder / f"{name}-mask.png", folder / f"{name}-overlay.png") for name in _file_names(prompts)]
    sampling_files = (folder / "sampling.png", folder / "sampling.gif") if show_sampling else ()
    _spare((file, *targets), [*sum(mask_files, ()), *sampling_files])

    from bench.data.geometry import image_to_square, logits_to_original
    from bench.environment import seed_everything
    from bench.predict import generator_for, predict_logits
    from bench.sampling import chooses_tokens, predict_sampled
    from reports.sampling import SamplingRow, sampling_gif, sampling_png

    seed_everything(spec.seed)  # for the repeatable kernels; the sampling has a generator of its own
    _fits_context(prompts, spec)
    method = load_segmenter(spec, run_dir)
    model = method.model.eval()
    if show_sampling and not chooses_tokens(model):
        raise UserError(f"--show-sampling: {spec.method} attends to every token; boltzformer and seem choose some")
    _make(folder)
    square = image_to_square(image, method.recipe.image_size)
    device = next(model.parameters()).device
    generators = [generator_for(image_id(file), prompt, spec.seed, device) for prompt in prompts]
    if show_sampling:
        logits, layers = predict_sampled(model, square, prompts, method.recipe.precision, generators)
    else:
        logits = predict_logits(model, square, prompts, method.recipe.precision, generators)
    full = logits_to_original(logits, *image.shape[:2])
    masks, probabilities = (full > 0).cpu().numpy(), full.sigmoid().cpu().numpy()

    results = []
    for prompt, mask, probability, files in zip(prompts, masks, probabilities, mask_files, strict=True):
        for path, pixels in zip(files, (mask.astype(np.uint8) * 255, overlay(image, mask)), strict=True):
            write_file(path, lambda handle, pixels=pixels: Image.fromarray(pixels).save(handle, "PNG"))
        confidence = float(probability[mask].mean() if mask.any() else probability.max())
        results.append(PromptMask(prompt, mask, confidence, *files))
    if show_sampling:
        rows = [SamplingRow(*row) for row in zip(prompts, [image] * len(prompts), truths or masks, layers, strict=True)]
        outlined = "target" if truths else "mask"
        title = f"Dark: no query attends there; the brighter, the more queries do; {outlined} outlined red"
        for path, draw in zip(sampling_files, (sampling_png, sampling_gif), strict=True):
            write_file(path, lambda handle, draw=draw: handle.write(draw(rows, title)))
    return ImagePrediction(run_dir, read, image.shape[:2], tuple(results), sampling_files)


def find_run(name: str, runs_dir: Path) -> Path:
    """The run folder `name` means: a run folder, the model.pt in one, or the beginning of one run id in `runs_dir`.

    Raises UserError that says what there is.
    """
    path = Path(name)
    folder = path.parent if path.name == CHECKPOINT else path
    if (folder / "spec.json").is_file():
        return folder
    if path.is_file():
        raise UserError(
            f"{path} is no run: give a run's folder, or the {CHECKPOINT} in it (its spec.json stands beside)"
        )
    if (path / "suite.json").is_file():
        inside = ", ".join(spec.parent.name for spec in sorted(path.glob("*/spec.json")))
        raise UserError(f"{path} holds several runs: name one of {inside or 'them, it has none yet'}")
    runs = [spec.parent for spec in sorted(runs_dir.glob("*/*/spec.json"))]
    if not runs:
        raise UserError(f"no run '{name}': {runs_dir} holds none; start with `bench run`, or name --runs-dir")

    def names(run: Path) -> tuple[str, ...]:
        return run.name, f"{run.parent.name}/{run.name}", str(run)

    found = [run for run in runs if name in names(run)]
    for beginning in (f"{name}-", name):  # "sam" is rather sam-hiera_xt-... than sam2-...
        found = found or [run for run in runs if any(known.startswith(beginning) for known in names(run))]
    if len(found) > 1:
        raise UserError(f"'{name}' is the beginning of {', '.join(names(run)[1] for run in found)}: write more of one")
    if not found:
        raise unknown_name("run", name, {part for run in runs for part in (run.name, run.name.split("-")[0])})
    return found[0]


def image_id(file: Path) -> str:
    """The name of an image without its ending ("scan" of scan.nii.gz); a number is no ending (DICOM's 1.2.840.7)."""
    name = re.sub(r"\.nii\.gz$", ".nii", file.name, flags=re.IGNORECASE)
    return name if Path(name).suffix[1:].isdigit() else Path(name).stem


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 and (H, W) bool -> (kH, kW, 3) uint8: light fill, and a line just outside the mask."""
    from reports.figures import MASK_COLOR
    from reports.sampling import outline

    factor = max(1, OVERLAY_SIDE // max(mask.shape))
    image, mask = (array.repeat(factor, axis=0).repeat(factor, axis=1) for array in (image, mask))
    picture = image.astype(np.float32)
    picture[mask] = 0.75 * picture[mask] + 0.25 * np.array(MASK_COLOR, dtype=np.float32)
    picture[outline(mask, max(1, max(mask.shape) // 300))] = MASK_COLOR
    return picture.astype(np.uint8)


def _checked(prompts: Sequence[str]) -> list[str]:
    prompts = list(dict.fromkeys(prompt.strip() for prompt in prompts))
    if not prompts or "" in prompts:
        raise UserError('--prompt is empty: say what to look for, as in --prompt "lung nodule in CT"')
    return prompts


def _fits_context(prompts: Sequence[str], spec: RunSpec) -> None:
    """UserError for a prompt of which the model would not read the end."""
    from models.text_encoder import tokenize

    context = spec.model.context_length
    for prompt in prompts:
        count = tokenize([prompt], 10_000)[0].shape[1]
        if count > context:
            raise UserError(f"--prompt '{prompt[:40]}...' has {count} tokens and the model reads {context}: shorten it")


def _make(folder: Path) -> None:
    """The folder of the results."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made ({error.strerror}): name another folder") from None


def segmenter_spec(run_dir: Path) -> RunSpec:
    """The spec of a run whose method answers prompts on one image; UserError for any other."""
    spec = read_spec(run_dir)
    if spec.method not in METHODS:
        raise unknown_name(f"method in {run_dir / 'spec.json'}", spec.method, METHODS)
    if not METHODS[spec.method].uses_backbone:
        able = ", ".join(name for name, entry in METHODS.items() if entry.uses_backbone)
        raise UserError(f"{run_dir} is a run of {spec.method}, which takes no prompt on a new image; these do: {able}")
    if spec.recipe is None or spec.model is None:
        raise UserError(f"{run_dir / 'spec.json'} has no recipe or model for {spec.method}: run the suite again")
    if not (run_dir / CHECKPOINT).is_file():
        ended = run_state(run_dir)["state"] == "finished"
        why = "it was finished, so this is an archive: use" if ended else "its training has not come so far; finish"
        raise UserError(f"{run_dir} has no {CHECKPOINT}: {why} the suite that it belongs to")
    return spec


def load_segmenter(spec: RunSpec, run_dir: Path) -> TrainedSegmenter:
    """The trained model of a run; UserError where its file is broken or of another model."""
    from models.checkpoints import read_checkpoint

    file = run_dir / CHECKPOINT
    try:
        read_checkpoint(file)  # refuses what is no plain state dict, in words of its own
        return METHODS[spec.method].build(spec).load(run_dir)
    except Exception as error:  # whatever sizes that do not go together lead torch to
        reason = " ".join(str(error).removeprefix(f"{file} ").split())[:160] or type(error).__name__
        raise UserError(
            f"{file} does not fit the model of its spec.json, or is broken ({reason}): train again"
        ) from None


def _targets(
    files: Sequence[Path], prompts: Sequence[str], size: tuple[int, int], show_sampling: bool
) -> list[np.ndarray]:
    if files and not show_sampling:
        raise UserError("--target is what --show-sampling outlines: add --show-sampling, or leave --target out")
    if files and len(files) != len(prompts):
        raise UserError(f"{len(files)} --target for {len(prompts)} --prompt: give one mask per prompt, in their order")
    masks = [load_mask(file) for file in files]
    for file, mask in zip(files, masks, strict=True):
        if mask.shape != size:
            have, want = (f"{width} x {height}" for height, width in (mask.shape, size))
            raise UserError(f"--target {file} is {have} px, the image {want}: give the mask of this very image")
    return masks


def _spare(inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    kept = {file.resolve() for file in inputs}
    for path in outputs:
        if path.resolve() in kept:
            raise UserError(f"{path} is one of the inputs and would be overwritten: name another folder with --out")


def _file_names(prompts: Iterable[str]) -> list[str]:
    """File names one can read, each once: "lung nodule in CT" -> "lung-nodule-in-ct"."""
    names: list[str] = []
    for prompt in prompts:
        base = name = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60] or "prompt"
        number = 1
        while name in names:
            number += 1
            name = f"{base}-{number}"
        names.append(name)
    return names
