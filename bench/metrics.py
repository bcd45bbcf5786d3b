"""What is measured of one mask against the truth, at the image's own resolution; scores are derived in `reports`.

Empty masks, here and in every table: where truth and prediction are both empty nothing is defined and nothing averaged.
Where one of them is, Dice and NSD are 0 and the Hausdorff distance is not defined; where the truth is not empty and no
pixel of it is found, the target is missed.
"""

from __future__ import annotations

import math

import numpy as np

TOLERANCES = (1, 2, 4)  # px, of NSD


def counts(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """True positive, false positive and false negative pixels of two (H, W) bool masks.

    Raises ValueError if their shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape}, truth is {truth.shape}")
    tp = int(np.count_nonzero(prediction & truth))
    return tp, int(np.count_nonzero(prediction)) - tp, int(np.count_nonzero(truth)) - tp


def surfaces(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """nsd_1, nsd_2, nsd_4 (0..1) and hd95 (px) of two (H, W) bool masks, by DeepMind's surface-distance.

    NSD, the normalised surface Dice at a tolerance in px, weighs the parts of a contour by their length (as MONAI does
    with use_subvoxels=True). hd95 is the 95th percentile of the contours' distances, the larger of both ways.
    """
    from surface_distance import metrics

    if not prediction.any() or not truth.any():
        nsd = 0.0 if prediction.any() or truth.any() else math.nan
        return {f"nsd_{tolerance}": nsd for tolerance in TOLERANCES} | {"hd95": math.nan}
    distances = metrics.compute_surface_distances(truth, prediction, (1.0, 1.0))
    nsd = {f"nsd_{px}": float(metrics.compute_surface_dice_at_tolerance(distances, px)) for px in TOLERANCES}
    return nsd | {"hd95": float(metrics.compute_robust_hausdorff(distances, 95))}


def lesions(prediction: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Connected parts (8 neighbours) of two (H, W) bool masks: lesions, how many of them the prediction touches;
    detections, parts of the prediction, and how many of those touch the truth.
    """
    import cc3d

    found = {}
    for name, of, hit, by in (("lesions", truth, "found", prediction), ("detections", prediction, "hits", truth)):
        labels = cc3d.connected_components(of, connectivity=8)
        found |= {name: int(labels.max()), hit: int(np.count_nonzero(np.unique(labels[by])))}
    return found
