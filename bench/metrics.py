"""Counts of one mask against the truth; every score is derived from them in `reports`."""

from __future__ import annotations

import numpy as np


def counts(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """True positive, false positive and false negative pixels of two (H, W) bool masks.

    Raises ValueError if their shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape}, truth is {truth.shape}")
    tp = int(np.count_nonzero(prediction & truth))
    return tp, int(np.count_nonzero(prediction)) - tp, int(np.count_nonzero(truth)) - tp
