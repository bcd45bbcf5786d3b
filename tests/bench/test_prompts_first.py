from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bench.interface import Sample, Target
from bench.prompts_first import learn_prompts, mean_token
from bench.train import fingerprint
from bench.workers import Quiet
from experiments.profiles import LAPTOP
from models.segmenter import build_text_encoder

# words shared across classes, and one prompt of two classes
PROMPTS = {
    ("a", "vessel"): ("vessel in liver CT", "hepatic vessels in abdominal CT", "blood vessels on a CT scan"),
    ("a", "tumor"): ("tumor in liver CT", "hepatic neoplasm in abdominal CT", "tumour in abdominal CT"),
    ("b", "tumor"): ("tumor in colon CT", "colorectal neoplasm in abdominal CT", "tumour in abdominal CT"),
}


def sample(dataset: str, *objects: str) -> Sample:
    targets = tuple(Target(name, PROMPTS[dataset, name], Path("mask.png")) for name in objects)
    return Sample(dataset, "image", "patient", Path("image.png"), 8, 8, targets)


SAMPLES = [sample("a", "vessel", "tumor"), sample("b", "tumor"), sample("a", "tumor")]


def taught(steps=50, seed=0):
    torch.manual_seed(seed)
    encoder = build_text_encoder(LAPTOP.model)
    learn_prompts(encoder, SAMPLES, steps, Quiet())
    return encoder


def nearest(encoder) -> dict[str, str]:
    """Each prompt of one class and the other prompt whose mean token has the highest cosine with its own."""
    prompts = list(dict.fromkeys(prompt for several in PROMPTS.values() for prompt in several))
    tokens = F.normalize(mean_token(encoder, prompts).detach())
    cosine = (tokens @ tokens.T).fill_diagonal_(-1)
    return {prompt: prompts[int(place)] for prompt, place in zip(prompts, cosine.argmax(1), strict=True)}


def of_one_target(encoder) -> bool:
    classes = [set(prompts) for prompts in PROMPTS.values()]
    return all(any({prompt, other} <= one for one in classes) for prompt, other in nearest(encoder).items())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prompts_of_one_target_come_together(seed):
    assert not of_one_target(taught(steps=0, seed=seed)), "else there was nothing to learn"
    encoder = taught(seed=seed)
    assert of_one_target(encoder)
    shared, liver, colon, vessel = mean_token(
        encoder, ["tumour in abdominal CT", "tumor in liver CT", "tumor in colon CT", "vessel in liver CT"]
    )
    near = [F.cosine_similarity(shared, other, dim=0).item() for other in (liver, colon, vessel)]
    assert min(near[:2]) > 0.2 and near[2] < -0.2, "a prompt of two targets is near to both, and not to the third"
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_draws_are_of_the_seed_alone():
    encoder = taught(steps=5)
    after = torch.rand(1)
    torch.rand(7)
    assert fingerprint(taught(steps=5)) == fingerprint(encoder) != fingerprint(taught(steps=5, seed=1))
    torch.manual_seed(0)
    assert torch.rand(1) == after


def test_more_prompts_than_a_step_takes(monkeypatch):
    monkeypatch.setattr("bench.prompts_first.AT_ONCE", 5)
    assert of_one_target(taught(steps=100))
