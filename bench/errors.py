"""The exception that is a message to the user rather than a bug, and what is asked of others."""

import difflib
import errno
from collections.abc import Iterable

# what torch and oneDNN say on a CPU, where it is no torch.OutOfMemoryError
NO_MEMORY = ("can't allocate memory", "not enough memory", "could not create a memory object")


class UserError(Exception):
    """A mistake the user can mend: one line that says what, where and the fix. The command line exits with 2."""


class PartLost(BaseException):
    """The process or node that ran a part of a trial is gone. No Exception: the trial has not failed, it goes on."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    return UserError(f"unknown {kind} '{name}': {hint}")


def printable(text: str) -> str:
    """The text with control characters as \\x1b and the like: a terminal takes some of them for commands."""
    return "".join(ascii(c)[1:-1] if is_control(c) else c for c in text)


def is_control(character: str) -> bool:
    """Whether a character is one of Unicode's C0 or C1 controls."""
    return ord(character) < 32 or 127 <= ord(character) < 160


def comes_from_outside(error: BaseException) -> bool:
    """Whether a file system, memory or a device failed, which says nothing against what has been computed so far."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, OSError) or is_out_of_memory(error) or "AcceleratorError" in names


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU or of the machine did not suffice."""
    # torch's exceptions by name: it is slow to import
    if isinstance(error, MemoryError) or "OutOfMemoryError" in {kind.__name__ for kind in type(error).__mro__}:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def full_disk(error: BaseException) -> str | None:
    """The message for an OSError that says that there is no space left, or no quota; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    what = "no space left on device" if error.errno == errno.ENOSPC else "disk quota exceeded"
    where = f" while writing {error.filename}" if error.filename else ""
    return f"{what}{where}: free some and run the same command again"
