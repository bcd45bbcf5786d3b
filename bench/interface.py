"""The types that pass between data, methods and harness, and the two protocols a method may fulfil.

`Method` (fit, predict) is all the harness sees. A `Segmenter` is a torch module that `bench.train` turns into a
`Method`; nnU-Net trains itself and is a `Method` directly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Generator, Tensor


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


@dataclass
class Batch:
    """B images with P prompts in all (Decision 6: images once, prompts many).

    images: (B, 3, S, S) uint8 or float32 in 0..255; prompts: P strings; image_index: (P,) int64, the image of each
    prompt; masks: (P, S, S) uint8 or float32 of 0 and 1, or None in prediction.
    """

    images: Tensor
    prompts: list[str]
    image_index: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Prediction:
    """The mask of one target at the image's original resolution: (height, width) bool, and the seconds it took."""

    sample: Sample
    target: Target
    mask: np.ndarray
    seconds: float


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
    """A way from training samples to masks."""

    def fit(self, train: Sequence[Sample], val: Sequence[Sample], run_dir: Path, log: Log) -> FitSummary:
        """Trains on `train`, selects on `val`, keeps what `predict` needs in `run_dir`."""

    def predict(self, samples: Iterable[Sample], log: Log) -> Iterator[Prediction]:
        """One prediction per (sample, target), at original resolution, from the target's first prompt."""


class Segmenter(Protocol):
    """A torch module: images and prompts in, mask logits out.

    It may also have `training_loss(batch, generator) -> scalar`, where its own training needs more than its logits
    (several masks, matching, a score). Without it, the loss is `models.losses.segmentation_loss` of the logits.
    """

    def __call__(
        self, images: Tensor, prompts: list[str], image_index: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """(B, 3, S, S) in 0..255, P prompts, (P,) -> logits (P, h, w); h x w may be smaller than S x S.

        `generator` is the only source of randomness.
        """
