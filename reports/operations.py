"""The paper's claim of attention an order of magnitude cheaper, by the operations that `bench profile` counts."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from models.config import FULL

FEWER = 10.0  # an order of magnitude
SIDES = (32, 64, 128)  # the decoder's three grids of an image of 1024 px
QUERIES = (10, 32, 101)
NEEDED = ("scope", "method", "path", "tokens", "queries", "sampling", "phase", "dtype", "gflop")
ALL_TOKENS = {"plain": "as usually written", "auto": "in its own cheapest form"}  # path in profile.csv
RULE = (
    "Fewer operations: of one cross-attention layer on each of the three grids of 1024 px at the full size, counted by "
    "bench profile. The sampled one, in the form that the decoder takes, with what the choice of tokens costs (the "
    "queries' embedding and its product with S); against attention to all tokens with keys and values of each, as "
    "usually written, and in the form that is cheapest for it. Supported from 10 x on."
)


def operation_lines(profile: Path) -> list[dict[str, object]]:
    """Lines of the claims table from a profile.csv; "not run" where it does not hold what they need."""
    frame = _counted(profile)
    lines = []
    for path, form in ALL_TOKENS.items():
        for queries in QUERIES:
            times = _times(frame, queries, path)
            known = math.isfinite(times)
            lines.append(
                {
                    "claim": f"10% of the tokens: 10 x fewer operations than all, {form} ({queries} queries)",
                    "unit": "x",
                    "paper": FEWER,
                    "ours": times if known else None,
                    "verdict": ("supported" if times >= FEWER else "contradicted") if known else "not run",
                }
            )
    return lines


def _counted(profile: Path) -> pd.DataFrame:
    """The rows of forward passes in fp32; none where the file is not there, or is no profile."""
    try:
        frame = pd.read_csv(profile, usecols=list(NEEDED))
    except (OSError, ValueError):
        return pd.DataFrame(columns=list(NEEDED))
    frame["gflop"] = pd.to_numeric(frame["gflop"], errors="coerce")
    return frame[(frame["scope"] == "attention") & (frame["phase"] == "forward") & (frame["dtype"] == "fp32")]


def _times(frame: pd.DataFrame, queries: int, path: str) -> float:
    """How many times the operations with all tokens are those with the sampled ones; NaN where either is not known."""
    embedding, product = 3 * 2 * FULL.width**2, [2 * side**2 * FULL.width for side in SIDES]
    choice = queries * (len(SIDES) * embedding + sum(product)) / 1e9
    full = _gflop(frame, queries, method="full", path=path)
    return full / (_gflop(frame, queries, method="boltzformer", path="auto", sampling=FULL.sampling_ratio) + choice)


def _gflop(frame: pd.DataFrame, queries: int, **how: object) -> float:
    """The sum over the three grids; NaN where one is not there."""
    total = 0.0
    for side in SIDES:
        case = {"tokens": side**2, "queries": queries, **how}
        rows = frame.loc[(frame[list(case)] == pd.Series(case)).all(axis=1), "gflop"]
        total += rows.iloc[0] if len(rows) else math.nan
    return total
