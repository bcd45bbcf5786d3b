"""BiomedParse v1 (Zhao et al., Nature Methods 2025; microsoft/BiomedParse, Apache-2.0), pre-trained and only evaluated.

Focal-L, X-Decoder's pixel decoder and CLIP-style text encoder are those of `models/`; the decoder is SEEM's: queries
read the image by masked attention at threshold 0.5, then queries and text tokens attend to each other, and both go
through the feed-forward layer. After the last layer every query has a mask and a class embedding, and the prompt gets
the mask of the query whose class embedding is most similar to the prompt's end-of-text token.

What follows their code (`inference_utils/inference.py`, `modeling/interface/seem_demo.py`, `modeling/language/
vlpencoder.py`, `configs/biomedparse_inference.yaml`): 101 queries, 9 layers, all 101 queries may be chosen, cosine
similarity, bilinear resizing of the chosen mask's logits, sigmoid above 0.5; images of 1024 px, pixel statistics
as in that file. Their evaluation (`seem_v1`) runs the same path beside queries for other tasks, which it does not see.
What differs or could not be settled:

- Several prompts of an image share its features and are answered independently, as in the authors' evaluation
  (`datasets/registration`: one record per mask). Their demonstration puts the tokens of all prompts into one sequence,
  where an answer depends on what else is asked.
- Their training configuration (`configs/biomed_seg_lang_v1.yaml`) names ImageNet's pixel statistics, their inference
  configuration those of their data. The latter are used.
- An image that is no square is padded and resized like every other method's; theirs pads both sides when data are
  prepared, and stretches in the demonstration.
- No published file was at hand: names and shapes are those of its manifest, the values were never seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.cost import inference_cost
from bench.environment import torch_device
from bench.interface import FitSummary, Log, Prediction, Sample
from bench.predict import predict_samples
from bench.spec import RunSpec
from bench.train import starting_point
from bench.weights import own_weights_path
from models.backbones import PixelStatistics
from models.checkpoints import LoadReport, load_published, match, read_checkpoint
from models.config import FULL, ModelConfig
from models.decoder import Decoder
from models.published_names import DECODER, PREDICTOR, XDECODER, Kind, Rule, under
from models.segmenter import ImageEncoder, ImageFeatures, build_text_encoder
from models.semantic import SemanticMap

BACKBONE = "focal_l"
CONFIG = FULL.model_copy(update={"attention": "threshold", "text_prior": False, "pigma": False})
IMAGE_SIZE = 1024  # px, square
PIXELS = PixelStatistics((64.284, 59.293, 59.962), (62.484, 60.865, 59.835))
PRECISION = "auto"  # theirs: half precision in the evaluation, full in the demonstration

# What stands in the published file and no text prompt reaches, and why.
UNUSED = {
    r"sem_seg_head\.predictor\.(pn_indicator|spatial_embed|spatial_featured)\.weight": "prompts by points and strokes",
    r"sem_seg_head\.predictor\.mask_sptial_embed\.\d": "prompts by points and strokes",
    r"dilation_kernel": "widens strokes; a constant",
    r"sem_seg_head\.predictor\.lang_encoder\.biomed_encoder\..+": "BiomedBERT, which the released tokenizer leaves out",
    r"sem_seg_head\.predictor\.lang_encoder\.logit_scale": "scales all similarities alike: the same query is chosen",
}
WEIGHTS = Kind(
    "BiomedParse",
    sign=r"sem_seg_head\.predictor\.class_embed",
    fills=("backbone", "neck", "pixel_decoder", "text_encoder", "decoder"),
    rules=(
        *XDECODER,
        *under(PREDICTOR, "decoder.", [*DECODER, Rule(r"class_embed", r"class_embedding")]),
    ),
    unused="|".join(UNUSED),
)


class GroundingDecoder(Decoder):
    """SEEM's decoder for text: the blocks of ours, in which the text tokens pass through the feed-forward layer too."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.class_embedding = nn.Parameter(torch.empty(config.width, config.width))
        nn.init.trunc_normal_(self.class_embedding, std=0.02)

    def forward(
        self, visual: list[Tensor], semantic: SemanticMap, text: Tensor, text_padding: Tensor, image_index: Tensor
    ) -> Tensor:
        """The queries after the last layer, normalised: (P, m, d).

        visual: V at strides 32, 16, 8, each (B, d, h_s, w_s); semantic: S of the B images; text: (P, T, d);
        text_padding: (P, T) bool, True = not a token; image_index: (P,) int64.
        """
        prompts, queries_per_prompt = len(text), self.config.queries
        queries = self.query_content.weight.expand(prompts, -1, -1)
        position = torch.cat((self.query_position.weight.expand(prompts, -1, -1), text.detach()), dim=1)
        padding = F.pad(text_padding, (queries_per_prompt, 0), value=False)
        tokens = [features.flatten(2).transpose(1, 2).contiguous() for features in visual]
        for layer in range(self.config.layers):
            level = layer % len(visual)
            grid = visual[level].shape[-2:]
            keep = self.choose_tokens(layer, semantic.logits_on(grid, self.embed(queries), image_index), None)
            queries = self.cross_attention[layer](
                queries, self.query_position.weight, tokens[level], grid, self.level.weight[level], image_index, keep
            )
            both = self.self_attention[layer](torch.cat((queries, text), dim=1), position, padding)
            both = self.feed_forward[layer](both)
            queries, text = both[:, :queries_per_prompt], both[:, queries_per_prompt:]
        return self.norm(queries)


class BiomedParse(nn.Module):
    """Image and text in, the logits of the best query's mask out; its parts are named as BoltzFormer's."""

    def __init__(self, backbone: str, config: ModelConfig):
        super().__init__()
        self.image_encoder = ImageEncoder(backbone, config, pixels=PIXELS)
        self.text_encoder = build_text_encoder(config)
        self.decoder = GroundingDecoder(config)

    def forward(
        self, images: Tensor, prompts: list[str], image_index: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """RGB (B, 3, H, W) in 0..255, P prompts, (P,) int64 -> logits (P, H / 4, W / 4). Nothing in it is random."""
        return self.decode(self.image_encoder(images), prompts, image_index, generator)

    def decode(
        self, features: ImageFeatures, prompts: list[str], image_index: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """`forward` from the features of its images on: they serve any number of prompts."""
        text, padding = self.text_encoder(prompts)
        features.semantic.plan(len(prompts))
        queries = self.decoder(features.visual, features.semantic, text, padding, image_index)
        each = torch.arange(len(prompts), device=text.device)
        end_of_text = text[each, (~padding).sum(dim=1) - 1]
        best = _similarity(queries @ self.decoder.class_embedding, end_of_text[:, None]).argmax(dim=1)
        chosen = self.decoder.mask_embedding(queries[each, best])
        return features.semantic.logits(chosen[:, None], image_index).squeeze(1)


def _similarity(queries: Tensor, text: Tensor) -> Tensor:
    """Cosine of (P, m, d) and (P, 1, d) -> (P, m) float32: near ties should not be settled in half precision."""
    return F.cosine_similarity(queries.float(), text.float(), dim=-1)


def build_model() -> BiomedParse:
    """The model of the published file, with random weights: 340 M parameters."""
    return BiomedParse(BACKBONE, CONFIG)


def try_weights(spec: RunSpec, path: Path) -> LoadReport:
    """What the file fills, worked out without storage for the model; CheckpointError where it does not fit."""
    with torch.device("meta"):
        model = build_model()
    return match(model, read_checkpoint(path), path.name, kind=WEIGHTS)[1]


def build(spec: RunSpec) -> PretrainedBiomedParse:
    """The method of a run."""
    return PretrainedBiomedParse(spec)


class PretrainedBiomedParse:
    """A `Method` that trains nothing: `fit` loads the published weights, `predict` answers with them."""

    def __init__(self, spec: RunSpec):
        self.spec = spec
        self.model: BiomedParse | None = None

    def fit(self, train: Sequence[Sample], val: Sequence[Sample], run_dir: Path, log: Log) -> FitSummary:
        """Loads the file that suite.json names; neither `train` nor `val` is looked at.

        UserError where the file is gone or has changed since the run was planned.
        """
        log.progress("load weights", 0, 1)
        report = self.load(run_dir)
        model = self.model
        given = starting_point(model) | {
            "image_size": str(IMAGE_SIZE),
            "images_seen": "0 here",
            "augmentation": "none",
            "loss": "none",
            "selection": "none",
            "tuning": "none",
        }
        log.progress("measure what a prompt costs", 0, 1)
        return FitSummary(
            budget="pre-trained, not trained here",
            train_seconds=0.0,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            cost=inference_cost(model, IMAGE_SIZE, PRECISION),
            given=given,
            notes=[
                str(report),
                "its authors trained it on their own splits: images tested here may have been among their training "
                "images",
            ],
        )

    def load(self, run_dir: Path) -> LoadReport:
        """Takes the weights that suite.json beside `run_dir` names; raises as `fit`."""
        self.model = build_model()
        report = load_published(self.model, own_weights_path(self.spec, run_dir.parent), kind=WEIGHTS)
        self.model.to(torch_device()).eval().requires_grad_(False)
        return report

    def predict(self, samples: Iterable[Sample], log: Log) -> Iterator[Prediction]:
        """Masks at original resolution; the prompts of an image share its features."""
        assert self.model is not None, "fit first"
        return predict_samples(self.model, samples, IMAGE_SIZE, PRECISION, self.spec.seed, log)
