"""Training checkpoints: files from which a killed run goes on as if nothing had happened.

A checkpoint is one file, `resume-<step>-<first 16 hex digits of the SHA-256 of its bytes>.pt` in the run folder. A file
that is torn or altered no longer has the hash it is named after, and the one before it is taken.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bench.atomic import write_tensors
from bench.errors import comes_from_outside, full_disk
from bench.spec import sha256_of

KEPT = 2
PATTERN = "resume-*.pt"
NAME = re.compile(r"resume-\d{8}-[0-9a-f]{16}\.pt")


def save_checkpoint(run_dir: Path, step: int, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain Python values) as of `step`, and removes all but this one and the one before.

    On a full disk training goes on without this one: a line says so.
    """
    unnamed, of_step = run_dir / "resume.partial", f"resume-{step:08d}"
    try:
        write_tensors(unnamed, state)
        saved = unnamed.replace(run_dir / f"{of_step}-{sha256_of(unnamed)[:16]}.pt")
    except OSError as error:
        if (message := full_disk(error)) is None:
            raise
        print(f"no checkpoint at step {step}: {message}")
        return
    # one of a later step was torn, or training would not be here again
    others = [file for file in checkpoints(run_dir) if file != saved]
    kept = [file for file in others if file.name < of_step][: KEPT - 1]
    for file in set(others) - set(kept):
        file.unlink(missing_ok=True)


def newest_checkpoint(run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its state, on the CPU; None where there is none. A line for each that is not.

    Nothing in a file is executed, even where its name has the hash of its bytes.
    """
    import torch

    from models.checkpoints import check_archive

    for file in checkpoints(run_dir):
        reason = "torn or altered"
        if file.stem.endswith(sha256_of(file)[:16]):
            try:
                check_archive(file)
                return file, torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises whatever strange bytes lead it to
                if comes_from_outside(error):
                    raise
                reason = f"of no use ({' '.join(str(error).split())[:200]})"
        print(f"{file.name} is {reason}: the checkpoint before it is taken")
    return None


def forget_checkpoints(run_dir: Path) -> None:
    """Removes all of them: the run is finished, or is to begin anew."""
    for file in [*checkpoints(run_dir), run_dir / "resume.partial"]:
        file.unlink(missing_ok=True)


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, the newest first; whether they are whole is not looked at."""
    return sorted((file for file in run_dir.glob(PATTERN) if NAME.fullmatch(file.name)), reverse=True)
