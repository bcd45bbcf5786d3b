"""The number of decoder layers L; not in the paper, which uses 9. The laptop profile has 6.

bench ablate layers
"""

from bench.spec import Ablation

ABLATION = Ablation(
    name="layers",
    title="Decoder layers",
    field="model.layers",
    values={"3": 3, "6": 6, "9": 9},
)
