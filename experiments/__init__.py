"""Suites, profiles and the paper's numbers as small Python files; importing them imports no torch, ray or mlflow."""

from bench.spec import Suite
from experiments import main, smoke, variants

SUITES: dict[str, Suite] = {suite.name: suite for suite in (main.SUITE, smoke.SUITE, variants.SUITE)}
