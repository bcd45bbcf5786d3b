"""What is to be run, as frozen data: suites, profiles, and the RunSpec whose hash names a run. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from models.config import ModelConfig


class Frozen(BaseModel):
    """Immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# part of a run folder's name, so no separator may stand in it
Name = Annotated[str, StringConstraints(pattern=r"^[\w.=%-]+$", max_length=100)]
# half of the 64 bits that a prompt's generator is seeded with
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=1)]
Cpus = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _whole_above_one(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("one GPU can be shared, several cannot: give a whole number above 1")
    return gpus


Gpus = Annotated[Amount, AfterValidator(_whole_above_one)]


class Recipe(Frozen):
    """How a segmenter is trained; the same for every decoder of a suite."""

    image_size: Annotated[int, Field(ge=1, le=2**13)]  # px, square
    steps: Count
    # before them, for a text encoder that no published weights fill: `bench.prompts_first`
    text_steps: Annotated[int, Field(ge=0)] = 0
    batch_images: Count
    prompts_per_image: Count  # at most so many of an image's targets in a training batch
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    # AdamW's for the squared gradients: the higher, the longer a part whose gradients were small takes too large steps
    # after a large one
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False  # image features are computed again in the backward pass: less memory, slower
    validate_every: Count = 100  # steps
    patience: Count = 5  # validations without a lower loss before the run stops early
    # how often a data set is drawn, by its number of images n: proportional (n), square-root (n ** 0.5), uniform (1)
    dataset_sampling: Literal["proportional", "square-root", "uniform"] = "square-root"
    augment: bool = True  # appendix A.5
    # of the moving average of the weights that is validated and kept: how much of it stays at a step; 0: none
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0


class NnunetBudget(Frozen):
    """What one nnU-Net expert is given. None leaves nnU-Net's own plan (patch, batch, network) as it is."""

    epochs: Count
    iterations_per_epoch: Count
    batch_size: Count | None = None
    patch_size: Count | None = None  # px, square; never more than the image
    features: tuple[int, ...] | None = None  # channels per stage


class PhantomSize(Frozen):
    """How much phantom a profile generates."""

    image_size: Annotated[int, Field(ge=64, le=2048)]
    patients: Annotated[int, Field(ge=3)]  # per data set, in the train folder
    test_patients: Count
    slices: Count  # per patient
    seed: Annotated[int, Field(ge=0)] = 0


class Profile(Frozen):
    """One scale of the same suite."""

    name: str
    title: str
    recipe: Recipe
    model: ModelConfig
    backbones: tuple[str, ...]
    nnunet: NnunetBudget
    phantom: PhantomSize
    objects: dict[str, tuple[str, ...]] | None = None  # phantom objects per data set; None is all 38 of Table 9
    cpus_per_trial: Cpus = 1
    gpus_per_trial: Gpus = 0
    memory_gib_per_trial: Amount = 0  # of the machine, not of its GPUs; 0 reserves none
    # processes that train one trial by the shared recipe, each of which reserves the above; with fewer the recipe is
    # the same. No part of a run's spec, as is `micro_batch`
    workers_per_trial: Count = 1
    micro_batch: Count | None = None  # images that a worker has at once; None: all of its share
    cpus_per_expert: Cpus = 1  # of nnU-Net; fractions of a GPU are Ray's bookkeeping, memory is not divided
    gpus_per_expert: Gpus = 0


class Suite(Frozen):
    """A named comparison. `profile` fixes the scale; None lets the hardware choose."""

    name: str
    title: str
    methods: tuple[str, ...]
    reference: str | None = None  # the method that the others are compared with
    seeds: tuple[int, ...] = (0,)
    profile: str | None = None


class Ablation(Frozen):
    """One knob of BoltzFormer at several values, everything else as the profile has it.

    `field` is "model.NAME" or "recipe.NAME"; `values` map what a table shows to the field's value. `share`: values are
    shares of the profile's own (of an image size, kept a multiple of 32). `table` is the paper's.
    """

    name: str
    title: str
    field: str
    values: dict[str, Any]
    share: bool = False
    table: int | None = None


class Weights(Frozen):
    """Published weights that a model starts from, known by their content: a path may differ between machines."""

    file: str  # its name, without folders
    sha256: str  # of its bytes
    parts: tuple[str, ...]  # what they fill, by the names of models.checkpoints.PARTS


class Origin(Frozen):
    """Where a row comes from that no run here made; known by the content of its files."""

    kind: Literal["published", "predictions"]  # somebody's Dice, imported; masks of another tool, scored here
    source: str  # the folder's name
    sha256: str  # of its files
    column: str | None = None  # of the published files


# Fields that came after the first runs, left out of a run's hash at their defaults: (part of the spec, field, default).
ADDED = (
    (None, "weights", None),
    (None, "own_weights", None),
    (None, "origin", None),
    ("recipe", "gradient_checkpointing", False),
    ("model", "compare_per_head", False),
    ("model", "annealing", "inverse"),
    (None, "variant", None),
    (None, "tuning", None),
    ("recipe", "ema", 0.0),
    ("recipe", "beta2", 0.999),
    ("recipe", "text_steps", 0),
)


class RunSpec(Frozen):
    """One trial. Two runs with equal specs are the same run; its id is a hash of everything here."""

    suite: str
    profile: str
    method: str
    backbone: Name  # "-" where a method has none
    seed: Seed
    split_hash: str
    recipe: Recipe | None = None  # None for methods that train by a recipe of their own
    model: ModelConfig | None = None
    nnunet: NnunetBudget | None = None
    weights: Weights | None = None  # of what the decoders share; None: random
    own_weights: Weights | None = None  # of the method itself (`bench run --weights METHOD=FILE`)
    origin: Origin | None = None  # of a row that was not run here
    variant: str | None = None  # "temperature=0.25": a value of an ablation that is not the profile's own
    tuning: str | None = None  # how `bench tune` found the recipe: "12 configurations x 450 steps, ASHA"

    @property
    def hash(self) -> str:
        """The first 10 hex digits of the SHA-256 of the spec as canonical JSON."""
        value = self.model_dump(mode="json")
        for part, name, default in ADDED:  # runs made before there were these fields keep their ids
            holder = value if part is None else value[part]
            if holder is not None and holder[name] == default:
                del holder[name]
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def row(self) -> str:
        """What a table's row stands for: the method, and what an ablation changed in it."""
        return self.method if self.variant is None else f"{self.method} {self.variant}"

    @property
    def run_id(self) -> str:
        """A folder name one can read: row, backbone, seed, hash."""
        parts = [folder_name(self.row), self.backbone, f"seed{self.seed}", self.hash]
        return "-".join(part for part in parts if part != "-")


def folder_name(row: str) -> str:
    """A row of a table as a part of a folder's name."""
    return re.sub(r"[^\w.=%]+", "-", row).strip("-")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"recipe": {"steps": 4}} -> {"recipe.steps": 4}."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat |= flatten(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = item
    return flat
