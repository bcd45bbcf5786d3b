"""Every method by name. An entry's builder imports what it needs when it is called, not before."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from bench.interface import Method, MethodEntry, build_in
from bench.plugins import installed_methods
from bench.spec import Profile, RunSpec, Suite, Weights

if TYPE_CHECKING:
    from pathlib import Path

    from bench.data.splits import Splits
    from models.checkpoints import LoadReport


def _boltzformer(spec: RunSpec) -> Method:
    from bench.train import TrainedSegmenter
    from models.segmenter import BoltzFormer

    return TrainedSegmenter(spec, lambda: BoltzFormer(spec.backbone, spec.model))


def _sam(spec: RunSpec, pooled: bool = False) -> Method:
    from baselines.sam import Sam, embedding_stride
    from bench.train import TrainedSegmenter

    stride = embedding_stride(spec.recipe.image_size)
    return TrainedSegmenter(spec, lambda: Sam(spec.backbone, spec.model, stride, pooled))


def _sam_multimask(spec: RunSpec) -> Method:
    from baselines.sam import SamMultimask, embedding_stride
    from bench.train import TrainedSegmenter

    stride = embedding_stride(spec.recipe.image_size)
    return TrainedSegmenter(spec, lambda: SamMultimask(spec.backbone, spec.model, stride))


def _sam2(spec: RunSpec, pooled: bool = False) -> Method:
    from baselines.sam2 import Sam2
    from bench.train import TrainedSegmenter

    return TrainedSegmenter(spec, lambda: Sam2(spec.backbone, spec.model, pooled))


def _sam2_multimask(spec: RunSpec) -> Method:
    from baselines.sam2 import Sam2Multimask
    from bench.train import TrainedSegmenter

    return TrainedSegmenter(spec, lambda: Sam2Multimask(spec.backbone, spec.model))


def _seem(spec: RunSpec) -> Method:
    from baselines.seem import build_seem
    from bench.train import TrainedSegmenter

    return TrainedSegmenter(spec, lambda: build_seem(spec.backbone, spec.model))


def _mask2former(spec: RunSpec) -> Method:
    from baselines.mask2former import Mask2Former
    from bench.train import TrainedSegmenter

    return TrainedSegmenter(spec, lambda: Mask2Former(spec.backbone, spec.model))


def _sam3(spec: RunSpec) -> Method:
    from baselines.sam3 import Sam3
    from bench.train import TrainedSegmenter

    return TrainedSegmenter(spec, lambda: Sam3(spec.backbone, spec.model))


def _sam3_weights(spec: RunSpec, path: Path) -> LoadReport:
    from baselines.sam3 import try_weights

    return try_weights(spec, path)


def _full_attention(spec: RunSpec) -> Method:
    from bench.train import TrainedSegmenter
    from models.segmenter import BoltzFormer

    return TrainedSegmenter(
        spec, lambda: BoltzFormer(spec.backbone, spec.model.model_copy(update={"attention": "full"}))
    )


def _refuse_overlaps(splits: Splits) -> None:
    from baselines.nnunet_multiclass import refuse_overlaps

    refuse_overlaps(splits)


def _biomedparse_weights(spec: RunSpec, path: Path) -> LoadReport:
    from baselines.biomedparse import try_weights

    return try_weights(spec, path)


# A suite puts them in the order of its table's rows.
METHODS: dict[str, MethodEntry] = {
    "location_prior": MethodEntry(
        "Location prior",
        build_in("baselines.location_prior"),
        "mean training mask of the prompt",
        trained=False,
        uses_backbone=False,
    ),
    "nnunet": MethodEntry("nnU-Net", build_in("baselines.nnunet"), "nnunetv2", uses_backbone=False, spreads=True),
    "nnunet_multiclass": MethodEntry(
        "nnU-Net (multi-class)",
        build_in("baselines.nnunet_multiclass"),
        "nnunetv2, one model per data set",
        uses_backbone=False,
        spreads=True,
        check=_refuse_overlaps,
    ),
    "sam": MethodEntry("SAM (text)", _sam, "segment-anything's mask decoder"),
    "sam_pooled": MethodEntry(
        "SAM (pooled text)", partial(_sam, pooled=True), "segment-anything's mask decoder, one token per prompt"
    ),
    "sam_multimask": MethodEntry(
        "SAM (text, multimask)", _sam_multimask, "segment-anything's mask decoder, the best of three masks"
    ),
    "sam2": MethodEntry("SAM 2 (text)", _sam2, "sam2's mask decoder"),
    "sam2_pooled": MethodEntry(
        "SAM 2 (pooled text)", partial(_sam2, pooled=True), "sam2's mask decoder, one token per prompt"
    ),
    "sam2_multimask": MethodEntry(
        "SAM 2 (text, multimask)", _sam2_multimask, "sam2's mask decoder, the best of three masks"
    ),
    "biomedparse": MethodEntry(
        "BiomedParse v1",
        build_in("baselines.biomedparse"),
        "Zhao et al., Nature Methods 2025, its published weights",
        trained=False,
        uses_backbone=False,
        loads=_biomedparse_weights,
        needs_weights=True,
    ),
    "seem": MethodEntry("SEEM (text)", _seem, "masked attention at threshold 0.5"),
    "mask2former": MethodEntry(
        "Mask2Former (text)", _mask2former, "transformers' Mask2Former, its own pixel decoder and loss"
    ),
    "sam3": MethodEntry(
        "SAM 3 (text)", _sam3, "transformers' SAM 3 detector and mask head, its own loss", loads=_sam3_weights
    ),
    "full_attention": MethodEntry("Full attention", _full_attention, "BoltzFormer without masks in its attention"),
    "boltzformer": MethodEntry("BoltzFormer", _boltzformer, "Zhao et al., CVPR 2025"),
}
METHODS |= installed_methods(METHODS)


def make_spec(
    suite: Suite,
    profile: Profile,
    method: str,
    backbone: str,
    seed: int,
    split_hash: str,
    weights: Weights | None = None,
    own_weights: Weights | None = None,
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
        nnunet=profile.nnunet if method in ("nnunet", "nnunet_multiclass") else None,
        weights=weights if shared else None,
        own_weights=own_weights,
    )


def why_not_run(spec: RunSpec) -> str | None:
    """Why there is nothing to run, with the fix; None where there is: its row reads "-" and nothing failed."""
    entry = METHODS.get(spec.method)
    if entry is None or not entry.needs_weights or spec.own_weights is not None:
        return None
    return f"no weights: give them with --weights {spec.method}=FILE"
