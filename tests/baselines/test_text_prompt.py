import torch

from baselines.text_prompt import TOKENS, TextPrompt
from models.config import ModelConfig

CONFIG = ModelConfig(
    width=32, heads=4, feedforward=64, layers=3, queries=4, pixel_layers=1, text_width=32, text_layers=1, text_heads=2
)
WIDTH = 48
PROMPTS = ["nodule in lung CT", "right kidney in abdominal MRI", "a very long phrase " * 8 + "in abdominal MRI"]


def test_a_prompts_tokens_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    text = TextPrompt(CONFIG, WIDTH).eval()
    with torch.inference_mode():
        together = text(PROMPTS)
        assert together.shape == (3, TOKENS, WIDTH)
        for row, prompt in enumerate(PROMPTS):
            torch.testing.assert_close(together[row : row + 1], text([prompt]), rtol=1e-4, atol=1e-5)


def test_the_last_token_is_the_end_of_text_and_short_prompts_repeat_it():
    torch.manual_seed(0)
    text = TextPrompt(CONFIG, WIDTH).eval()
    with torch.inference_mode():
        given = text(PROMPTS)
        for row, prompt in enumerate(PROMPTS):
            tokens = text.projection(text.encoder([prompt])[0][0])  # alone, without padding
            count = min(len(tokens), TOKENS - 1)
            torch.testing.assert_close(given[row, :count], tokens[:count], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(given[row, count:], tokens[-1:].expand(TOKENS - count, -1), rtol=1e-4, atol=1e-5)


def test_the_pooled_token_is_the_end_of_text():
    torch.manual_seed(0)
    text = TextPrompt(CONFIG, WIDTH, pooled=True).eval()
    with torch.inference_mode():
        given = text(PROMPTS)
        assert given.shape == (3, 1, WIDTH)
        for row, prompt in enumerate(PROMPTS):
            tokens, _ = text.encoder([prompt])
            torch.testing.assert_close(given[row, 0], text.projection(tokens[0, -1]), rtol=1e-4, atol=1e-5)
