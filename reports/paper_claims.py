"""What the paper claims and a suite can test, with the paper's own effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from experiments.paper import TABLE_1, TABLE_2, TABLES_3_TO_8
from reports.strata import ALL, LARGE, SMALL, Group


@dataclass(frozen=True)
class Claim:
    """`better` and `worse` are methods of a suite, or (ablation, value).

    group: the objects it is about; gain: what is claimed is the difference on small objects minus that on large ones;
    misses: it is about targets that no pixel of the mask touches, of which the better has fewer, not about Dice; paper:
    None where it has no number.
    """

    text: str
    paper: float | None
    better: str | tuple[str, str]
    worse: str | tuple[str, str]
    rule: Literal["more", "no less"] = "more"
    group: Group = ALL
    gain: bool = False
    misses: bool = False


def _table_1(method: str) -> float:
    return TABLE_1["BoltzFormer+Hiera-S"][0] - TABLE_1[method][0]


def _ablation(name: str, better: str, worse: str) -> tuple[float, tuple[str, str], tuple[str, str]]:
    effect = TABLES_3_TO_8[name, better][0] - TABLES_3_TO_8[name, worse][0]
    return effect, (name, better), (name, worse)


def _table_2(size: str, method: str) -> float:
    return TABLE_2[size, "BoltzFormer"][0] - TABLE_2[size, method][0]


SAMPLED, THRESHOLD, FULL = "boltzmann sampling", "0.5 threshold", "full attention"
INVERSE = "inverse (paper)"
# methods of a main suite that are what an ablation's value is
ALSO = {("attention", SAMPLED): "boltzformer", ("attention", FULL): "full_attention"}
PIGMA, ENSEMBLE = "with pixel grounded correction", "query ensemble only"
CLAIMS = (
    Claim("BoltzFormer is better than SAM (text)", _table_1("SAM+Hiera-S (text)"), "boltzformer", "sam"),
    Claim("BoltzFormer is better than SAM 2 (text)", _table_1("SAM2+Hiera-S (text)"), "boltzformer", "sam2"),
    Claim("BoltzFormer is better than SEEM (text)", _table_1("SEEM+Hiera-S (text)"), "boltzformer", "seem"),
    Claim("BoltzFormer is better than nnU-Net", _table_1("nnU-Net"), "boltzformer", "nnunet"),
    Claim("BoltzFormer is better than BiomedParse", _table_1("BiomedParse"), "boltzformer", "biomedparse"),
    Claim("Better than SAM (text) on small objects", _table_2("small", "SAM"), "boltzformer", "sam", group=SMALL),
    Claim("Better than SAM 2 (text) on small objects", _table_2("small", "SAM2"), "boltzformer", "sam2", group=SMALL),
    Claim("Better than SEEM (text) on small objects", _table_2("small", "SEEM"), "boltzformer", "seem", group=SMALL),
    Claim("Better than SAM (text) on large objects", _table_2("large", "SAM"), "boltzformer", "sam", group=LARGE),
    Claim("Better than SAM 2 (text) on large objects", _table_2("large", "SAM2"), "boltzformer", "sam2", group=LARGE),
    Claim("Better than SEEM (text) on large objects", _table_2("large", "SEEM"), "boltzformer", "seem", group=LARGE),
    Claim(
        "It gains more over SEEM on small objects than on large",
        _table_2("small", "SEEM") - _table_2("large", "SEEM"),
        "boltzformer",
        "seem",
        gain=True,
    ),
    # section C.2: "the baseline models could miss the target completely"
    Claim("Misses fewer targets than SAM (text)", None, "boltzformer", "sam", misses=True),
    Claim("Misses fewer targets than SAM 2 (text)", None, "boltzformer", "sam2", misses=True),
    Claim("Misses fewer targets than SEEM (text)", None, "boltzformer", "seem", misses=True),
    Claim("Misses fewer targets than nnU-Net", None, "boltzformer", "nnunet", misses=True),
    Claim("Boltzmann sampling is better than a threshold", *_ablation("attention", SAMPLED, THRESHOLD)),
    Claim("A threshold is better than full attention", *_ablation("attention", THRESHOLD, FULL)),
    Claim("Boltzmann sampling is better than full attention", *_ablation("attention", SAMPLED, FULL)),
    Claim("Temperature 1 is no worse than 0.25", *_ablation("temperature", "1", "0.25"), "no less"),
    Claim("Temperature 1 is no worse than 0.5", *_ablation("temperature", "1", "0.5"), "no less"),
    Claim("Temperature 1 is better than 2", *_ablation("temperature", "1", "2")),
    Claim("10% of the tokens are better than 5%", *_ablation("samples", "10%", "5%")),
    Claim("5% of the tokens are enough (against 10%)", *_ablation("samples", "5%", "10%"), "no less"),
    Claim("10% of the tokens are enough (against 20%)", *_ablation("samples", "10%", "20%"), "no less"),
    Claim("10% of the tokens are enough (against 50%)", *_ablation("samples", "10%", "50%"), "no less"),
    Claim("10 queries are enough (against 32)", *_ablation("queries", "10", "32"), "no less"),
    Claim("10 queries are enough (against 101)", *_ablation("queries", "10", "101"), "no less"),
    Claim("1 query is not enough (against 10)", *_ablation("queries", "10", "1")),
    Claim("Annealing is better than one temperature", None, ("annealing", INVERSE), ("annealing", "constant")),
    Claim("The text-conditioned prior helps", *_ablation("prior", "text-conditioned", "unconditioned")),
    Claim("PiGMA helps", *_ablation("pigma", PIGMA, ENSEMBLE)),
)
