"""The harness and the command line: everything that is the same for all methods."""

import os

# Ray reads this once, when anybody (a method of another package, a test) first imports it. Without it, the thread that
# Tune leaves after Ctrl-C starts a Ray of its own, and the process is ended when that one is gone.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

__version__ = "0.1.0"
