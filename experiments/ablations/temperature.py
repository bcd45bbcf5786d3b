"""Table 4: the base temperature tau_0 of the annealing schedule.

    bench ablate temperature

Paper, average Dice: 0.25 73.6, 0.5 73.0, 1 73.7, 2 72.2.
"""

from bench.spec import Ablation

ABLATION = Ablation(
    name="temperature",
    title="Base temperature",
    field="model.temperature",
    values={"0.25": 0.25, "0.5": 0.5, "1": 1.0, "2": 2.0},
    table=4,
)
