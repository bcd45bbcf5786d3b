"""The main suite in under three minutes: the whole way of the data, too short to learn much.

bench run --suite smoke
"""

from bench.spec import Suite
from experiments import main

SUITE = Suite(name="smoke", title="Smoke test of the main suite", methods=main.SUITE.methods, profile="smoke")
