"""The types that pass between data, methods and harness, and the two protocols a method may fulfil.

`Method` (fit, predict) is all the harness sees. A `Segmenter` is a torch module that `bench.train` turns into a
`Method`; nnU-Net trains itself and is a `Method` directly.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Generator, Tensor

    from bench.data.splits import Splits
    from bench.spec import RunSpec
    from models.checkpoints import LoadReport

# spread(work, items): `work` turns a share of the items into events; whoever runs the trial decides how many shares
# there are and where they run, and gives their events as they come.
Spread = Callable[[Callable[[list[dict]], Iterator[dict]], list[dict]], Iterator[dict]]


@dataclass(frozen=True)
class Target:
    """One object of one image: its mask file and the phrases that name it (the first is used in evaluation)."""

    object: str
    prompts: tuple[str, ...]
    mask_file: Path


@dataclass(frozen=True)
class Sample:
    """One image with all its targets. `height` and `width` are the original size in pixels."""

    dataset: str
    image_id: str
    patient: str
    image_file: Path
    height: int
    width: int
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Part:
    """Where the prompts of a batch stand in the whole batch of an optimiser step, of which they are a part.

    first: the place of the first one; total: the prompts of the whole; objects: those of them whose mask is not empty,
    None where nobody has counted them.
    """

    first: int
    total: int
    objects: int | None = None


@dataclass
class Batch:
    """B images with P prompts in all (Decision 6: images once, prompts many).

    images: (B, 3, S, S) uint8 or float32 in 0..255; prompts: P strings; image_index: (P,) int64, the image of each
    prompt, ascending; masks: (P, S, S) uint8 or float32 of 0 and 1, or None in prediction; part: None for a batch that
    is no part of another.
    """

    images: Tensor
    prompts: list[str]
    image_index: Tensor
    masks: Tensor | None = None
    part: Part | None = None


@dataclass(frozen=True)
class Prediction:
    """The mask of one target at the image's original resolution: (height, width) bool, and the seconds it took.

    `confidence` is the mean probability over the mask, the highest of the image where it is empty; NaN where the method
    has no probabilities.
    """

    sample: Sample
    target: Target
    mask: np.ndarray
    seconds: float
    confidence: float = math.nan


@dataclass
class FitSummary:
    """What training cost; stands beside the Dice in every table.

    `budget` says in a few words what the method was given ("400 steps x 16 images"); `parameters` counts the
    trainable ones; `cost` has the keys of `bench.fairness.COSTS` that were measured, `given` those of
    `bench.fairness.GIVEN`; `notes` are footnotes to the method's row.
    """

    budget: str
    train_seconds: float
    parameters: int = 0
    images_seen: int = 0
    best_val_dice: float | None = None
    cost: dict[str, float] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Log(Protocol):
    """Where a method reports how it goes; the harness turns it into the live display, history.jsonl and MLflow."""

    def progress(self, phase: str, step: int, total: int) -> None:
        """Cheap, call it every step: `phase` is a word or two ("train", "predict", "expert 3/13 nodule")."""

    def metrics(self, step: int, **values: float) -> None:
        """A point of the curves: train_loss, val_loss, val_dice, learning_rate, ..."""


class Method(Protocol):
    """A way from training samples to masks.

    A method of independent parts (nnU-Net's experts) has an attribute `spread: Spread`, which the harness replaces
    where they can run side by side; its entry says so.
    """

    def fit(self, train: Sequence[Sample], val: Sequence[Sample], run_dir: Path, log: Log) -> FitSummary:
        """Trains on `train`, selects on `val`, keeps what `predict` needs in `run_dir`."""

    def predict(self, samples: Iterable[Sample], log: Log) -> Iterator[Prediction]:
        """One prediction per (sample, target), at original resolution, from the target's first prompt."""


@dataclass(frozen=True)
class MethodEntry:
    """How a method is listed and built; what another package offers as an entry point of `boltzbench.methods`.

    `label` stands in tables; `trained` is False for a floor without gradient steps; `source` is its origin.
    """

    label: str
    build: Callable[[RunSpec], Method]
    source: str
    trained: bool = True
    uses_backbone: bool = True  # a Segmenter on the shared backbone, trained by the shared recipe
    spreads: bool = False  # its parts take the cores and GPUs; the trial itself only waits for them
    check: Callable[[Splits], None] | None = None  # raises UserError for data that it cannot be trained on
    # tries a file of the method's own published weights (`bench run --weights METHOD=FILE`) on the model of a spec;
    # raises models.checkpoints.CheckpointError where it does not fit. None: there are no such files
    loads: Callable[[RunSpec, Path], LoadReport] | None = None
    needs_weights: bool = False  # it is not trained here: without such a file it is not run
    package: str = "boltzbench"  # that it is from, with its version where it is another; filled when it is found


def build_in(module: str) -> Callable[[RunSpec], Method]:
    """For an entry: the function `build(spec)` of a module, which is imported when something is built."""
    return lambda spec: importlib.import_module(module).build(spec)


class Segmenter(Protocol):
    """A torch module: images and prompts in, mask logits out.

    It may also have `training_loss(batch, generator) -> scalar`, where its own training needs more than its logits
    (several masks, matching, a score). Without it, the loss is `models.losses.segmentation_loss` of the logits.
    A batch may be worked on in parts: the loss is a mean over prompts, or reads `batch.part`, and noise is drawn by
    `models.boltzmann.uniform`. Otherwise it trains, but to other weights under another split.
    One whose entry has `loads` also has `load_own(path) -> LoadReport`, which fills it from such a file.
    """

    def __call__(
        self,
        images: Tensor,
        prompts: list[str],
        image_index: Tensor,
        generator: Generator | Sequence[Generator] | None = None,
    ) -> Tensor:
        """(B, 3, S, S) in 0..255, P prompts, (P,) -> logits (P, h, w); h x w may be smaller than S x S.

        `generator` is the only source of randomness: one in training, in prediction a sequence of one per prompt.
        """
