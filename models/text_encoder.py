"""CLIP-style text encoder and CLIP's tokenizer, offline (appendix A.2)."""

from __future__ import annotations

import gzip
import importlib.util
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

START, END = "<|startoftext|>", "<|endoftext|>"


@lru_cache(maxsize=1)
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, from the merges that open-clip-torch carries (the package is not imported)."""
    package = importlib.util.find_spec("open_clip").submodule_search_locations[0]
    lines = gzip.decompress((Path(package) / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(c + "</w>" for c in letters), *("".join(m.split()) for m in merges), START, END]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(m.split()) for m in merges], model_max_length=77)


def tokenize(prompts: list[str], context_length: int = 77) -> tuple[Tensor, Tensor]:
    """Prompts -> ids (P, T) int64 and attention mask (P, T) int64, padded to the longest; cut at `context_length`."""
    batch = clip_tokenizer()(prompts, padding=True, truncation=True, max_length=context_length, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


class TextEncoder(nn.Module):
    """Causal transformer (QuickGELU), then a projection to the decoder's width; every token is used."""

    def __init__(self, width: int, layers: int, heads: int, output: int, context_length: int = 77):
        super().__init__()
        self.context_length = context_length
        self._cache: dict[str, Tensor] = {}  # prompt -> its tokens (T, output), while the weights are frozen
        self._cache_state: tuple | None = None
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=context_length,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-12,
        )
        self.transformer = CLIPTextModel(config)
        self.projection = nn.Linear(width, output, bias=False)

    def forward(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """P prompts -> tokens (P, T, output), zero where padded, and padding (P, T) bool, True = not a token.

        Equal prompts are encoded once; where no parameter is trained, once for all calls.
        """
        if not any(p.requires_grad for p in self.parameters()):
            return self._remembered(prompts)
        unique = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        tokens, attention = self._encode(list(unique))
        rows = torch.tensor([unique[prompt] for prompt in prompts], device=tokens.device)
        padding = attention[rows] == 0
        return tokens[rows].masked_fill(padding[..., None], 0.0), padding

    def _remembered(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """`forward` from the cache. Each prompt is encoded alone, so its tokens do not depend on who came with it.

        Loading, moving or casting the weights empties the cache; writing to `parameter.data` does not.
        """
        weight = self.projection.weight
        device, versions = weight.device, sum(p._version for p in self.parameters())
        state = (device, weight.dtype, torch.is_autocast_enabled(device.type), versions)
        if state != self._cache_state:
            self._cache_state, self._cache = state, {}
        with torch.inference_mode(False), torch.no_grad():  # what is kept while predicting must serve in training too
            for prompt in dict.fromkeys(prompts):
                if prompt not in self._cache:
                    self._cache[prompt] = self._encode([prompt])[0][0]
        tokens = pad_sequence([self._cache[prompt] for prompt in prompts], batch_first=True)
        lengths = torch.tensor([len(self._cache[prompt]) for prompt in prompts], device=device)
        return tokens, torch.arange(tokens.shape[1], device=device) >= lengths[:, None]

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        ids, attention = tokenize(prompts, self.context_length)
        device = self.projection.weight.device
        return self.encode(ids.to(device), attention.to(device)), attention.to(device)

    def encode(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Token ids and attention mask (P, T) -> (P, T, output)."""
        hidden = self.transformer(input_ids=ids, attention_mask=attention).last_hidden_state
        return self.projection(hidden)
