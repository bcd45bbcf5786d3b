"""The transformer decoder of section 3.2: text-conditioned prior, then L blocks of sampled attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import MLP, CrossAttention, FeedForward, SelfAttention
from models.boltzmann import Draws, annealed_temperature, sample_tokens, threshold_tokens, uniform
from models.config import ModelConfig
from models.semantic import SemanticMap

# (layer, logits (P, m, N)) -> keep (P, m, N) bool, or (P, heads, m, N), or None to attend to every token
TokenChoice = Callable[[int, Tensor], Tensor | None]


class Decoder(nn.Module):
    """m latent queries per prompt that read the image where `attention` lets them, and become mask embeddings."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width, heads, feedforward = config.width, config.heads, config.feedforward
        self.query_content = nn.Embedding(config.queries, width)
        self.query_position = nn.Embedding(config.queries, width)
        self.level = nn.Embedding(3, width)
        self.cross_attention = nn.ModuleList(CrossAttention(width, heads) for _ in range(config.layers))
        self.self_attention = nn.ModuleList(SelfAttention(width, heads) for _ in range(config.layers))
        self.feed_forward = nn.ModuleList(FeedForward(width, feedforward) for _ in range(config.layers))
        if config.text_prior:
            self.prior_attention = SelfAttention(width, heads)
            self.prior_feed_forward = FeedForward(width, feedforward)
        self.norm = nn.LayerNorm(width)
        self.mask_embedding = MLP(width, width, width, width)

    def choose_tokens(self, layer: int, logits: Tensor, generator: Draws) -> Tensor | None:
        """The attention set of each query at `layer` from its mask logits on that layer's grid, (P, m, N)."""
        config = self.config
        if config.attention == "full":
            return None
        if config.attention == "threshold":
            return threshold_tokens(logits)
        one_for_all = generator is None or isinstance(generator, torch.Generator)
        if config.compare_per_head:
            logits = logits[:, None].expand(-1, config.heads, -1, -1)
        noise = uniform(logits.shape, logits.device, generator)
        # on a CPU prompt by prompt: what is computed on the way then stays in the cache
        size = len(logits) if logits.is_cuda and one_for_all else 1
        temperature = annealed_temperature(config.temperature, layer, config.layers, config.annealing)
        parts = zip(logits.split(size), noise.split(size), strict=True)
        return torch.cat([sample_tokens(part, temperature, config.sampling_ratio, own) for part, own in parts])

    def forward(
        self,
        visual: list[Tensor],
        semantic: SemanticMap,
        text: Tensor,
        text_padding: Tensor,
        image_index: Tensor,
        generator: Draws = None,
        choose: TokenChoice | None = None,
    ) -> Tensor:
        """The mask embedding of every query; its product with S is the query's mask.

        visual: V at strides 32, 16, 8, each (B, d, h_s, w_s); semantic: S of the B images; text: (P, T, d);
        text_padding: (P, T) bool, True = not a token; image_index: (P,) int64; generator: the only source of
        randomness; choose: replaces `choose_tokens` (figures and comparisons). Returns mu (P, m, d).
        """
        if choose is None:
            choose = lambda layer, logits: self.choose_tokens(layer, logits, generator)  # noqa: E731
        prompts, queries_per_prompt = text.shape[0], self.config.queries
        queries = self.query_content.weight.expand(prompts, -1, -1)
        position = torch.cat((self.query_position.weight.expand(prompts, -1, -1), text.detach()), dim=1)
        padding = F.pad(text_padding, (queries_per_prompt, 0), value=False)

        if self.config.text_prior:  # Eq. 4
            both = self.prior_attention(torch.cat((queries, text), dim=1), position, padding)
            queries, text = both[:, :queries_per_prompt], both[:, queries_per_prompt:]
            queries = self.prior_feed_forward(queries)

        tokens = [features.flatten(2).transpose(1, 2).contiguous() for features in visual]
        for layer in range(self.config.layers):
            level = layer % len(visual)
            grid = visual[level].shape[-2:]
            keep = None
            if self.config.attention != "full":
                # not under no_grad: autocast would keep the weights it casts there, without a gradient, for the masks
                embeddings = self.embed(queries).detach()
                keep = choose(layer, semantic.logits_on(grid, embeddings, image_index))
            queries = self.cross_attention[layer](
                queries, self.query_position.weight, tokens[level], grid, self.level.weight[level], image_index, keep
            )
            both = self.self_attention[layer](torch.cat((queries, text), dim=1), position, padding)
            queries, text = both[:, :queries_per_prompt], both[:, queries_per_prompt:]
            queries = self.feed_forward[layer](queries)
        return self.embed(queries)

    def embed(self, queries: Tensor) -> Tensor:
        """mu = MLP(q), Eq. 3: (P, m, d) -> (P, m, d)."""
        return self.mask_embedding(self.norm(queries))
