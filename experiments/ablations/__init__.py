"""The ablations by name: the paper's Tables 3 to 8, and three that it lacks. `bench ablate NAME` runs one."""

from bench.spec import Ablation, Suite
from experiments.ablations import annealing, attention, layers, pigma, prior, queries, samples, size, temperature

_MODULES = (attention, temperature, samples, queries, prior, pigma, annealing, layers, size)
ABLATIONS: dict[str, Ablation] = {module.ABLATION.name: module.ABLATION for module in _MODULES}

# all ablations share one folder, and with it the run of the profile's own values
SUITE = Suite(name="ablate", title="Ablations of BoltzFormer", methods=("boltzformer",), reference="boltzformer")
