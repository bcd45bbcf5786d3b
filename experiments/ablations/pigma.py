"""Table 8: PiGMA, or the mean of the queries' masks, Eq. 7.

    bench ablate pigma

Paper, average Dice: query ensemble only 73.2, with pixel grounded correction 73.7.
"""

from bench.spec import Ablation

ABLATION = Ablation(
    name="pigma",
    title="Pixel-grounded mask aggregation",
    field="model.pigma",
    values={"query ensemble only": False, "with pixel grounded correction": True},
    table=8,
)
