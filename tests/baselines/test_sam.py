"""The adapters against the packages' decoders called by hand, one prompt at a time."""

import pytest
import torch

from baselines.sam import WIDTH, Sam
from baselines.sam2 import Sam2
from baselines.text_prompt import TOKENS, TextPrompt
from models.config import ModelConfig

CONFIG = ModelConfig(
    width=32, heads=4, feedforward=64, layers=3, queries=4, pixel_layers=1, text_width=32, text_layers=1, text_heads=2
)
PROMPTS = ["nodule in lung CT", "right kidney in abdominal MRI", "tumor in colon CT"]
INDEX = torch.tensor([1, 0, 1])


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255


def test_sam_is_the_package_called_by_hand(images):
    torch.manual_seed(0)
    model = Sam("hiera_xt", CONFIG).eval()
    with torch.inference_mode():
        logits = model(images, PROMPTS, INDEX)
        for row, image in enumerate(INDEX.tolist()):
            features = model.image_encoder(images[image : image + 1])
            masks, quality = model.mask_decoder(
                image_embeddings=model.image_projection(features.visual[1]),
                image_pe=model.position((4, 4))[None],
                sparse_prompt_embeddings=model.text_prompt([PROMPTS[row]]),
                dense_prompt_embeddings=model.no_mask.weight[:, :, None, None].expand(1, WIDTH, 4, 4),
                multimask_output=False,
            )
            assert masks.shape == (1, 1, 16, 16)
            assert quality.shape == (1, 1)
            torch.testing.assert_close(logits[row], masks[0, 0], rtol=1e-4, atol=1e-4)


def test_sam2_is_the_package_called_by_hand(images):
    torch.manual_seed(0)
    model = Sam2("hiera_xt", CONFIG).eval()
    with torch.inference_mode():
        logits = model(images, PROMPTS, INDEX)
        for row, image in enumerate(INDEX.tolist()):
            features = model.image_encoder(images[image : image + 1])
            stride16, stride8, stride4 = model.projections
            masks, *_ = model.mask_decoder(
                image_embeddings=stride16(features.visual[1]),
                image_pe=model.position((4, 4))[None],
                sparse_prompt_embeddings=model.text_prompt([PROMPTS[row]]),
                dense_prompt_embeddings=model.no_mask.weight[:, :, None, None].expand(1, WIDTH, 4, 4),
                multimask_output=False,
                repeat_image=True,
                high_res_features=[
                    model.mask_decoder.conv_s0(stride4(features.semantic.map())),
                    model.mask_decoder.conv_s1(stride8(features.visual[2])),
                ],
            )
            assert masks.shape == (1, 1, 16, 16)
            torch.testing.assert_close(logits[row], masks[0, 0], rtol=1e-4, atol=1e-4)


def test_a_prompts_tokens_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    text = TextPrompt(CONFIG, WIDTH).eval()
    long = "a very long phrase " * 8 + "in abdominal MRI"
    with torch.inference_mode():
        together = text([*PROMPTS, long])
        assert together.shape == (4, TOKENS, WIDTH)
        for row, prompt in enumerate([*PROMPTS, long]):
            torch.testing.assert_close(together[row : row + 1], text([prompt]), rtol=1e-4, atol=1e-5)
        tokens, padding = text.encoder([long])
        last = text.projection(tokens[0, (~padding[0]).sum() - 1])
        torch.testing.assert_close(together[3, -1], last, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together[0, -1], together[0, -2])
