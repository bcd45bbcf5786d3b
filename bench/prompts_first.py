"""What a random text encoder learns before the images: which prompts name the same target.

The paper's text encoder is a published one (appendix A.2), which knows words; a random one learns them from masks. Two
prompts of one image then share a mask for hundreds of steps ("vessel in liver CT" that of "tumor in liver CT"), and
some decoders do not get past that in the time they have (LOG.md). The prompts of the training split mend it in seconds,
and every decoder begins with the same result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.interface import Log, Sample
from models.segmenter import seeded
from models.text_encoder import TextEncoder

# the learning rate at that width of the encoder, lower for wider ones; not the recipe's, which a search may have made
# another for each decoder
RATE, WIDTH = 6e-4, 64
SHARPNESS = 10.0  # by which a cosine becomes a logit
AT_ONCE = 256  # prompts in a step


def learn_prompts(encoder: TextEncoder, samples: Sequence[Sample], steps: int, log: Log) -> None:
    """Steps by which the mean token of a prompt tells its class: data set and object.

    Each class has a direction of its own, and the logit of a prompt is its cosine to it times `SHARPNESS`. A prompt of
    several classes ("tumour in abdominal CT") is to be as near to one as to the other. The draws are a function of
    torch's seed alone, and leave torch's generator where it was.
    """
    prompts, truth = _targets_of(samples)
    own, width = encoder.projection.in_features, encoder.projection.out_features
    with seeded("prompts"):
        directions = nn.Parameter(torch.randn(truth.shape[1], width))
        trained = [*encoder.parameters(), directions]
        optimizer = torch.optim.AdamW(trained, lr=RATE * WIDTH / own, betas=(0.9, 0.95))
        for step in range(1, steps + 1):
            rows = torch.randperm(len(prompts))[:AT_ONCE]
            similarity = F.normalize(mean_token(encoder, [prompts[row] for row in rows])) @ F.normalize(directions).T
            optimizer.zero_grad()
            F.cross_entropy(SHARPNESS * similarity, truth[rows]).backward()
            optimizer.step()
            log.progress("prompts", step, steps)
    optimizer.zero_grad()


def mean_token(encoder: TextEncoder, prompts: list[str]) -> Tensor:
    """(P, d): the mean of each prompt's tokens, padding left out."""
    tokens, padding = encoder(prompts)
    return tokens.sum(1) / (~padding).sum(1, keepdim=True)


def _targets_of(samples: Sequence[Sample]) -> tuple[list[str], Tensor]:
    """Every prompt once, and the shares of its classes, (P, classes); a row sums to 1."""
    named: dict[str, set[tuple[str, str]]] = {}
    for sample in samples:
        for target in sample.targets:
            for prompt in target.prompts:
                named.setdefault(prompt, set()).add((sample.dataset, target.object))
    prompts, classes = sorted(named), sorted(set().union(*named.values()))
    truth = torch.tensor([[float(one in named[prompt]) for one in classes] for prompt in prompts])
    return prompts, truth / truth.sum(1, keepdim=True)
