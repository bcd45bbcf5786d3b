"""How the temperature falls from layer to layer; not in the paper, which uses tau_0 / (1 + l).

bench ablate annealing
"""

from bench.spec import Ablation

ABLATION = Ablation(
    name="annealing",
    title="Annealing schedule",
    field="model.annealing",
    values={"constant": "constant", "linear": "linear", "cosine": "cosine", "inverse (paper)": "inverse"},
)
