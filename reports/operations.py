"""The paper's claim of attention an order of magnitude cheaper, by the operations that `bench profile` counts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from models.config import FULL

FEWER = 10.0  # an order of magnitude
SIDES = (32, 64, 128)  # the decoder's three grids of an image of 1024 px
QUERIES = (10, 32, 101)
OTHERS = {"seem": "SEEM's", "sam": "SAM's (text)", "sam2": "SAM 2's (text)"}
RULE = (
    "Fewer operations: counted by bench profile at the full size and 10% of the tokens, supported from 10 x on. Of "
    "cross-attention: one layer on each of the three grids of 1024 px, attention to all tokens as it is usually "
    "written against the sampled form that the decoder takes, with the product of queries and S that the choice of "
    "tokens reads. Of the decoder: everything from image features and text tokens to the mask, 101 queries."
)


def operation_lines(profile: Path) -> list[dict[str, object]]:
    """Lines of the claims table from a profile.csv; "not run" where it does not hold what they need."""
    try:
        frame = pd.read_csv(profile)
        frame = frame[(frame["phase"] == "forward") & (frame["dtype"] == "fp32")]
    except (OSError, ValueError, KeyError):
        frame = None
    lines = [
        _line(f"Cross-attention of {queries} queries needs 10 x fewer operations", _attention(frame, queries))
        for queries in QUERIES
    ]
    return lines + [
        _line(f"The decoder needs 10 x fewer operations than {label}", _decoder(frame, method))
        for method, label in OTHERS.items()
    ]


def _line(claim: str, times: float | None) -> dict[str, object]:
    verdict = "not run" if times is None else "supported" if times >= FEWER else "contradicted"
    return {"claim": claim, "unit": "x", "paper": FEWER, "ours": times, "verdict": verdict}


def _attention(frame: pd.DataFrame | None, queries: int) -> float | None:
    choice = sum(2 * queries * side**2 * FULL.width for side in SIDES) / 1e9
    case = {"scope": "attention", "queries": queries}
    full = _gflop(frame, ({"method": "full", "path": "plain", "tokens": side**2} | case for side in SIDES))
    sampled = {"method": "boltzformer", "path": "auto", "sampling": FULL.sampling_ratio}
    ours = _gflop(frame, (sampled | {"tokens": side**2} | case for side in SIDES))
    return None if full is None or ours is None else full / (ours + choice)


def _decoder(frame: pd.DataFrame | None, method: str) -> float | None:
    case = {"scope": "decoder", "image_size": 1024}
    ours = {"method": "boltzformer", "path": "fast", "queries": FULL.queries, "sampling": FULL.sampling_ratio}
    # theirs is written as it is published, ours as it is run
    other = {"method": method, "path": "plain" if method == "seem" else "package"}
    other, ours = _gflop(frame, [case | other]), _gflop(frame, [case | ours])
    return None if other is None or ours is None else other / ours


def _gflop(frame: pd.DataFrame | None, cases: Iterable[dict[str, object]]) -> float | None:
    """The sum over rows with these values; None where one of them is not there."""
    if frame is None:
        return None
    total = 0.0
    for case in cases:
        rows = frame.loc[(frame[list(case)] == pd.Series(case)).all(axis=1), "gflop"]
        if rows.empty or not math.isfinite(rows.iloc[0]):
            return None
        total += rows.iloc[0]
    return total
