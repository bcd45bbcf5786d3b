"""Writing a file whole or not at all: temporary file beside it, fsync, rename."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from bench.errors import UserError
from bench.limits import load_json


def write_file(path: Path, write: Callable[[BinaryIO], object], durable: bool = True) -> None:
    """Replaces `path` by what `write` puts into the open binary file, in one step; its folder is created.

    `durable=False` leaves out the fsync, for files that are rewritten every second and mean nothing after a
    crash. Whatever is raised leaves the old file and no temporary behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # process and thread in the name: two writers of one file must not share a temporary
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as handle:
            write(handle)
            handle.flush()
            if durable:
                os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a failed write does not say of what
        raise


def remove_leftovers(folder: Path) -> None:
    """Removes the temporaries of `write_file` that killed processes have left in `folder`, where nobody may write."""
    for file in folder.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def write_tensors(path: Path, value: Any) -> None:
    """`write_file` of tensors and plain Python values by torch.save."""
    import torch

    def write(handle: BinaryIO) -> None:
        try:
            torch.save(value, handle)
        except RuntimeError as error:
            # torch closes its archive after a write that failed, which fails too and hides why
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_file(path, write)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """`write_file` of `text` as UTF-8."""
    write_file(path, lambda handle: handle.write(text.encode()), durable)


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """`write_text` of `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", durable)


def read_json(path: Path, fix: str) -> Any:
    """The JSON in `path`; UserError naming the file and `fix` where it is missing or broken."""
    try:
        return load_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {fix}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): {fix}") from None
