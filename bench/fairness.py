"""What a comparison has to hold equal, and what its methods cost: the names of both."""

from __future__ import annotations

# What a run was given, in the order of the fairness table. A method fills what applies to it (`FitSummary.given`):
# split and initial weights as hashes, image size in px, images seen in training with repetitions.
GIVEN = {
    "split": "split",
    "image_size": "image size",
    "backbone_weights": "backbone weights",
    "text_encoder": "text encoder",
    "images_seen": "images seen",
    "augmentation": "augmentation",
    "loss": "loss",
    "selection": "selection",
    "tuning": "tuning",
}

# What a method costs, in the order of the table's columns (`FitSummary.cost`).
COSTS = {
    "gflop_per_prompt": "GFLOP/prompt",
    "peak_memory_mib": "peak memory in training, MiB",
    "ms_1_prompt": "ms/prompt, 1 prompt",
    "ms_15_prompts": "ms/prompt, 15 prompts",
}
