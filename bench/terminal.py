"""What commands print with: a console, a progress bar and a plain table."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def terminal_console() -> Console:
    """Bound to today's stdout: trials of the local executor replace sys.stdout while they run."""
    from rich.console import Console

    # a log file or a pipe has no width of its own, and 80 columns would fold the tables
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 140
    return Console(file=sys.stdout, width=width)


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar while it is open, moved by calls with (done, total)."""
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class BarLog:
    """An `interface.Log` that moves a bar and keeps nothing: for a run whose own log has ended.

    The bar counts `steps` pieces of work, of which this is the one after the first `done`.
    """

    def __init__(self, on_progress: Callable[[int, int], None], done: int = 0, steps: int = 1):
        self.on_progress, self.done, self.steps = on_progress, done, steps

    def progress(self, phase: str, step: int, total: int) -> None:
        """Moves the bar; the phase is not shown."""
        self.on_progress(self.done * total + step, self.steps * total)

    def metrics(self, step: int, **values: float) -> None:
        """Nothing."""


def text_table(headers: list[str], rows: list[list[str]]) -> Table:
    """Rows of cells under their headers; cells are text, not markup."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table
