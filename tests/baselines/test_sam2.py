"""sam2's decoder called by hand, one prompt at a time."""

import pytest
import torch

from baselines.sam2 import WIDTH, Sam2, Sam2Multimask
from models.config import ModelConfig

CONFIG = ModelConfig(
    width=32, heads=4, feedforward=64, layers=3, queries=4, pixel_layers=1, text_width=32, text_layers=1, text_heads=2
)
PROMPTS = ["nodule in lung CT", "right kidney in abdominal MRI", "tumor in colon CT"]
INDEX = torch.tensor([1, 0, 1])


def by_hand(model, image, prompt):
    """The package's masks (M, h, w) and predicted IoU (M,), with one image embedding that it repeats itself."""
    features = model.image_encoder(image[None])
    stride16, stride8, stride4 = model.projections
    embedding = stride16(features.visual[1])
    rows, columns = embedding.shape[-2:]
    masks, quality, _, present = model.mask_decoder(
        image_embeddings=embedding,
        image_pe=model.position((rows, columns))[None],
        sparse_prompt_embeddings=model.text_prompt([prompt]),
        dense_prompt_embeddings=model.no_mask.weight[:, :, None, None].expand(1, WIDTH, rows, columns),
        multimask_output=model.multimask,
        repeat_image=True,
        high_res_features=[
            model.mask_decoder.conv_s0(stride4(features.semantic.map())),
            model.mask_decoder.conv_s1(stride8(features.visual[2])),
        ],
    )
    assert present.tolist() == [[10.0]]  # the package's constant for "an object is there" where it has no score
    return masks[0], quality[0]


@pytest.mark.parametrize(
    ("build", "options"),
    [(Sam2, {}), (Sam2, {"pooled": True}), (Sam2Multimask, {})],
    ids=["all", "pooled", "multimask"],
)
def test_it_is_the_package_called_by_hand(build, options):
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255
    torch.manual_seed(0)
    model = build("hiera_xt", CONFIG, **options).eval()
    with torch.inference_mode():
        logits = model(images, PROMPTS, INDEX)
        assert logits.shape == (3, 16, 24)
        for row, image in enumerate(INDEX.tolist()):
            masks, quality = by_hand(model, images[image], PROMPTS[row])
            assert len(masks) == len(quality) == (3 if build is Sam2Multimask else 1)
            assert ((quality >= 0) & (quality <= 1)).all()
            torch.testing.assert_close(logits[row], masks[quality.argmax()], rtol=1e-4, atol=1e-4)
