"""How hard a phantom is: three named difficulties of the same anatomy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difficulty:
    """1 is the default of each.

    contrast: of lesions and hepatic vessels against what surrounds them; noise: standard deviation of the scanner's
    noise and of the tissues' texture, 0 for none; distractors: how many look-alikes (vessels, cysts, granulomas, loops
    of bowel) stand beside the targets.
    """

    contrast: float = 1.0
    noise: float = 1.0
    distractors: float = 1.0


DEFAULT = Difficulty()
EASY = Difficulty(contrast=1.4, noise=0.5, distractors=0.5)
HARD = Difficulty(contrast=0.6, noise=1.8, distractors=1.8)
PHANTOMS = {"phantom": DEFAULT, "phantom-easy": EASY, "phantom-hard": HARD}  # as `bench run --data` knows them
