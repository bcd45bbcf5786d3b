"""The main suite in under three minutes: the whole way of the data, too short to learn much.

bench run --suite smoke
"""

from experiments import main

SUITE = main.SUITE.model_copy(update={"name": "smoke", "title": "Smoke test of the main suite", "profile": "smoke"})
