"""The harness and the command line: everything that is the same for all methods."""

__version__ = "0.1.0"
