"""segment-anything's decoder called by hand, one prompt at a time."""

import pytest
import torch

from baselines.sam import PROMPTS_ON_CPU, WIDTH, Sam, SamMultimask, embedding_stride
from models.config import ModelConfig

CONFIG = ModelConfig(
    width=32, heads=4, feedforward=64, layers=3, queries=4, pixel_layers=1, text_width=32, text_layers=1, text_heads=2
)
# more than the decoder gets at a time, in no order
PROMPTS = ["nodule in lung CT", "right kidney in abdominal MRI", "tumor in colon CT"] * 3 + ["liver"]
INDEX = torch.tensor([1, 0, 1, 1, 0, 0, 0, 1, 1, 0])
assert len(PROMPTS) > PROMPTS_ON_CPU


def by_hand(model, image, prompt):
    """The package's masks (M, h, w) and predicted IoU (M,): image as image embedding, "no mask" as dense prompt."""
    embedding = model.image_projection(model.image_encoder(image[None]).visual[model.level])
    rows, columns = embedding.shape[-2:]
    masks, quality = model.mask_decoder(
        image_embeddings=embedding,
        image_pe=model.position((rows, columns))[None],
        sparse_prompt_embeddings=model.text_prompt([prompt]),
        dense_prompt_embeddings=model.no_mask.weight[:, :, None, None].expand(1, WIDTH, rows, columns),
        multimask_output=model.multimask,
    )
    return masks[0], quality[0]


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize(
    ("build", "options"), [(Sam, {}), (Sam, {"pooled": True}), (SamMultimask, {})], ids=["all", "pooled", "multimask"]
)
def test_it_is_the_package_called_by_hand(build, options, stride):
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255
    torch.manual_seed(0)
    model = build("hiera_xt", CONFIG, stride, **options).eval()
    with torch.inference_mode():
        logits = model(images, PROMPTS, INDEX)
        assert logits.shape == (10, 4 * 64 // stride, 4 * 96 // stride)
        for row, image in enumerate(INDEX.tolist()):
            masks, quality = by_hand(model, images[image], PROMPTS[row])
            assert len(masks) == len(quality) == (3 if build is SamMultimask else 1)
            torch.testing.assert_close(logits[row], masks[quality.argmax()], rtol=1e-4, atol=1e-4)


def test_the_embedding_has_at_most_as_many_tokens_as_sams():
    assert embedding_stride(1024) == 16
    for size in range(64, 1025, 64):
        stride = embedding_stride(size)
        assert size / stride <= 64
        assert stride == 8 or size / 8 > 64


def test_heads_that_are_not_asked_are_not_trained():
    unused = {}
    for build in (Sam, SamMultimask):
        model = build("hiera_xt", CONFIG)
        unused[build] = {name.split(".layers")[0] for name, p in model.named_parameters() if not p.requires_grad}
        masks, quality = model.candidates(
            model.image_encoder(torch.rand(1, 3, 64, 64)), model.text_prompt(PROMPTS[:1]), torch.tensor([0])
        )
        (masks[:, 0] if build is Sam else masks.sum(1) + quality.sum()).sum().backward()
        assert all((p.grad is None) == (not p.requires_grad) for p in model.parameters())
    heads = "mask_decoder.output_hypernetworks_mlps"
    assert unused[SamMultimask] == {f"{heads}.0"}
    assert unused[Sam] == {f"{heads}.{i}" for i in (1, 2, 3)} | {"mask_decoder.iou_prediction_head"}
