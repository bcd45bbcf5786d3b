"""What a comparison has to hold equal, and what its methods cost: the names of both."""

from __future__ import annotations

# What a run was given, in the order of the fairness table. A method fills what applies to it (`FitSummary.given`).
GIVEN = {
    "split": "split hash",
    "image_size": "image size, px",
    "backbone_weights": "initial weights of the backbone, hash",
    "text_encoder": "initial weights of the text encoder, hash",
    "images_seen": "training images seen",
    "augmentation": "augmentation",
    "loss": "training loss",
    "selection": "weights selected by",
    "tuning": "tuning budget",
}

# What a method costs, in the order of the table's columns (`FitSummary.cost`).
COSTS = {
    "gflop_per_prompt": "GFLOP/prompt",
    "peak_memory_mib": "peak memory in training, MiB",
    "ms_1_prompt": "ms/prompt, 1 prompt",
    "ms_15_prompts": "ms/prompt, 15 prompts",
}
