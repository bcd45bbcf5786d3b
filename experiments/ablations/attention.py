"""Table 3: which tokens a query attends to.

    bench ablate attention

Paper, average Dice: full attention 71.2, 0.5 threshold 72.4, Boltzmann sampling 73.7.
"""

from bench.spec import Ablation

ABLATION = Ablation(
    name="attention",
    title="Attention",
    field="model.attention",
    values={"full attention": "full", "0.5 threshold": "threshold", "boltzmann sampling": "boltzmann"},
    table=3,
)
