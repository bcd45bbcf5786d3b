"""Table 6: the number of latent queries m.

    bench ablate queries

Paper, average Dice: 1 72.8, 10 73.8, 32 73.8, 101 73.7. Its default is 101, the laptop profile's 10.
"""

from bench.spec import Ablation

ABLATION = Ablation(
    name="queries",
    title="Latent queries",
    field="model.queries",
    values={"1": 1, "10": 10, "32": 32, "101": 101},
    table=6,
)
