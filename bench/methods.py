"""Every method by name. An entry's builder imports what it needs when it is called, not before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.interface import Method
from bench.spec import Profile, RunSpec, Suite, Weights


@dataclass(frozen=True)
class MethodEntry:
    """`label` stands in tables; `trained` is False for a floor without gradient steps; `source` is its origin."""

    label: str
    build: Callable[[RunSpec], Method]
    source: str
    trained: bool = True
    uses_backbone: bool = True  # a Segmenter on the shared backbone, trained by the shared recipe


def _boltzformer(spec: RunSpec) -> Method:
    from bench.train import TrainedSegmenter
    from models.segmenter import BoltzFormer

    return TrainedSegmenter(spec, lambda: BoltzFormer(spec.backbone, spec.model))


def _sam(spec: RunSpec) -> Method:
    from baselines.sam import Sam
    from bench.train import TrainedSegmenter

    return TrainedSegmenter(spec, lambda: Sam(spec.backbone, spec.model))


def _sam2(spec: RunSpec) -> Method:
    from baselines.sam2 import Sam2
    from bench.train import TrainedSegmenter

    return TrainedSegmenter(spec, lambda: Sam2(spec.backbone, spec.model))


def _seem(spec: RunSpec) -> Method:
    from baselines.seem import build_seem
    from bench.train import TrainedSegmenter

    return TrainedSegmenter(spec, lambda: build_seem(spec.backbone, spec.model))


def _nnunet(spec: RunSpec) -> Method:
    from baselines.nnunet import build

    return build(spec)


def _location_prior(spec: RunSpec) -> Method:
    from baselines.location_prior import build

    return build(spec)


# A suite puts them in the order of its table's rows.
METHODS: dict[str, MethodEntry] = {
    "location_prior": MethodEntry(
        "Location prior", _location_prior, "mean training mask of the prompt", trained=False, uses_backbone=False
    ),
    "nnunet": MethodEntry("nnU-Net", _nnunet, "nnunetv2", uses_backbone=False),
    "sam": MethodEntry("SAM (text)", _sam, "segment-anything's mask decoder"),
    "sam2": MethodEntry("SAM 2 (text)", _sam2, "sam2's mask decoder"),
    "seem": MethodEntry("SEEM (text)", _seem, "masked attention at threshold 0.5"),
    "boltzformer": MethodEntry("BoltzFormer", _boltzformer, "Zhao et al., CVPR 2025"),
}


def make_spec(
    suite: Suite,
    profile: Profile,
    method: str,
    backbone: str,
    seed: int,
    split_hash: str,
    weights: Weights | None = None,
) -> RunSpec:
    """The spec of one trial; `backbone` is "-", and `weights` are left out, for methods that have none."""
    shared = METHODS[method].uses_backbone
    return RunSpec(
        suite=suite.name,
        profile=profile.name,
        method=method,
        backbone=backbone if shared else "-",
        seed=seed,
        split_hash=split_hash,
        recipe=profile.recipe if shared else None,
        model=profile.model if shared else None,
        nnunet=profile.nnunet if method == "nnunet" else None,
        weights=weights if shared else None,
    )
