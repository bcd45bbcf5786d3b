"""What training and prediction cost: measured seconds per method, from which `bench.estimate` tells the
duration.

All numbers are wall seconds of one trial on one CPU core at the reference image size, with the `laptop`
profile's model; image costs grow with the number of pixels. A GPU divides the image costs by `GPU_SPEEDUP`.
"""

from __future__ import annotations

from dataclasses import dataclass

REFERENCE_SIZE = 256  # px, square
GPU_SPEEDUP = 25.0
BACKBONE_FACTOR: dict[str, float] = {}  # cost of a backbone relative to the one measured; 1 where not listed


@dataclass(frozen=True)
class TrainedCost:
    """A decoder trained by the shared recipe."""

    startup: float  # s: imports, data, building the model
    train_image: float  # s per image of a training step, forward and backward
    validate_image: float  # s per validation image, each time the loss is looked at
    predict_prompt: float  # s per (image, prompt) of the test split, image features shared


@dataclass(frozen=True)
class NnunetCost:
    """nnU-Net: one expert per (data set, object), or one multi-class model per data set."""

    startup: float  # s: imports and the first plan
    expert_startup: float  # s per expert: process, network, plan
    prepare_image: float  # s per training image and expert
    train_patch: float  # s per patch of an iteration, at the reference size
    predict_prompt: float  # s per (image, prompt)


@dataclass(frozen=True)
class PlainCost:
    """A method without gradient steps."""

    startup: float  # s
    train_image: float  # s per training image
    predict_prompt: float  # s per (image, prompt)


@dataclass(frozen=True)
class PretrainedCost:
    """A pre-trained model that is only evaluated, at an image size of its own whatever the images'."""

    startup: float  # s: imports, reading the weights, measuring what a prompt costs
    predict_image: float  # s per test image
    predict_prompt: float  # s per (image, prompt)


NNUNET = NnunetCost(startup=15, expert_startup=2, prepare_image=0.01, train_patch=0.33, predict_prompt=0.15)
COSTS: dict[str, TrainedCost | NnunetCost | PretrainedCost | PlainCost] = {
    "boltzformer": TrainedCost(startup=15, train_image=0.065, validate_image=0.04, predict_prompt=0.02),
    "sam": TrainedCost(startup=15, train_image=0.125, validate_image=0.06, predict_prompt=0.025),
    "sam_pooled": TrainedCost(startup=15, train_image=0.115, validate_image=0.06, predict_prompt=0.025),
    "sam_multimask": TrainedCost(startup=15, train_image=0.13, validate_image=0.06, predict_prompt=0.025),
    "sam2": TrainedCost(startup=15, train_image=0.08, validate_image=0.05, predict_prompt=0.025),
    "sam2_pooled": TrainedCost(startup=15, train_image=0.077, validate_image=0.05, predict_prompt=0.025),
    "sam2_multimask": TrainedCost(startup=15, train_image=0.09, validate_image=0.05, predict_prompt=0.025),
    "seem": TrainedCost(startup=15, train_image=0.062, validate_image=0.04, predict_prompt=0.02),
    "mask2former": TrainedCost(startup=15, train_image=0.24, validate_image=0.12, predict_prompt=0.05),
    "sam3": TrainedCost(startup=15, train_image=0.11, validate_image=0.06, predict_prompt=0.03),
    "full_attention": TrainedCost(startup=15, train_image=0.062, validate_image=0.04, predict_prompt=0.02),
    "nnunet": NNUNET,
    "nnunet_multiclass": NNUNET,
    "biomedparse": PretrainedCost(startup=170, predict_image=9, predict_prompt=0.4),
    "location_prior": PlainCost(startup=2, train_image=0.003, predict_prompt=0.001),
}
UNKNOWN = TrainedCost(startup=15, train_image=0.06, validate_image=0.03, predict_prompt=0.02)
