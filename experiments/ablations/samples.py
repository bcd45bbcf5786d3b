"""Table 5: the sampling ratio N / N_v, draws per number of tokens.

    bench ablate samples

Paper, average Dice: 5% 72.9, 10% 73.7, 20% 72.4, 50% 73.6.
"""

from bench.spec import Ablation

ABLATION = Ablation(
    name="samples",
    title="Sampling ratio",
    field="model.sampling_ratio",
    values={"5%": 0.05, "10%": 0.1, "20%": 0.2, "50%": 0.5},
    table=5,
)
