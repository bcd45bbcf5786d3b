"""The decoder against a slow, obvious implementation of section 3.2 that reads one prompt and one query at a time."""

import math

import pytest
import torch
from torch.nn import functional as F

from models.config import ModelConfig
from models.decoder import Decoder
from models.plain import plain_decoder
from models.position import sine_position
from models.semantic import SemanticMap

WIDTH, HEADS, QUERIES, LAYERS = 32, 4, 3, 4


def norm(x, layer):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + layer.eps) * layer.weight + layer.bias


def attend_one(q, keys, values, allowed):
    """One query vector, head by head, over the tokens in `allowed`."""
    heads = []
    size = WIDTH // HEADS
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        scores = torch.stack([q[part] @ keys[t, part] / math.sqrt(size) for t in allowed])
        weights = torch.exp(scores - scores.max())
        heads.append(sum(w * values[t, part] for w, t in zip(weights / weights.sum(), allowed, strict=True)))
    return torch.cat(heads)


def self_attention(block, x, position, allowed):
    wq, wk, wv = block.attention.in_proj_weight.chunk(3)
    bq, bk, bv = block.attention.in_proj_bias.chunk(3)
    q, k, v = (x + position) @ wq.T + bq, (x + position) @ wk.T + bk, x @ wv.T + bv
    out = torch.stack([attend_one(row, k, v, allowed) for row in q])
    return norm(x + block.attention.out_proj(out), block.norm)


def feed_forward(block, x):
    return norm(x + block.linear2(block.linear1(x).clamp(min=0)), block.norm)


def slow_decoder(decoder, visual, semantic, text, keep_of):
    """visual: 3 x (d, h, w); semantic (d, h, w); text (T, d) without padding; keep_of(layer) -> (m, N) bool."""
    queries = decoder.query_content.weight
    query_position = decoder.query_position.weight
    position = torch.cat([query_position, text])
    everything = range(QUERIES + len(text))
    both = self_attention(decoder.prior_attention, torch.cat([queries, text]), position, everything)
    queries, text = feed_forward(decoder.prior_feed_forward, both[:QUERIES]), both[QUERIES:]
    for layer in range(LAYERS):
        features = visual[layer % 3]
        tokens = features.flatten(1).T + decoder.level.weight[layer % 3]
        place = sine_position(*features.shape[1:], WIDTH)
        block, keep = decoder.cross_attention[layer], keep_of(layer)
        q, k, v = block.query(queries + query_position), block.key(tokens + place), block.value(tokens)
        out = torch.stack([attend_one(q[i], k, v, keep[i].nonzero().flatten().tolist()) for i in range(QUERIES)])
        queries = norm(queries + block.output(out), block.norm)
        both = self_attention(decoder.self_attention[layer], torch.cat([queries, text]), position, everything)
        queries, text = feed_forward(decoder.feed_forward[layer], both[:QUERIES]), both[QUERIES:]
    mu = decoder.mask_embedding(norm(queries, decoder.norm))
    return torch.einsum("md,dhw->mhw", mu, semantic)


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    visual = [torch.randn(2, WIDTH, n, n) for n in (2, 4, 8)]
    text = torch.randn(3, 5, WIDTH)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    text[padding] = 0
    return visual, torch.randn(2, WIDTH, 16, 16), text, padding, torch.tensor([0, 1, 1])


def candidates(decoder, visual, semantic, text, padding, index, **options):
    """Masks (P, m, h, w): the product of the decoder's embeddings with S."""
    semantic = SemanticMap(semantic)
    return semantic.logits(decoder(visual, semantic, text, padding, index, **options), index)


def build(**options):
    torch.manual_seed(1)
    config = ModelConfig(width=WIDTH, heads=HEADS, feedforward=48, layers=LAYERS, queries=QUERIES, **options)
    return Decoder(config).eval()


@pytest.mark.parametrize("path", ["projected", "absorbed", "gathered"])
@pytest.mark.parametrize("attention", ["boltzmann", "threshold", "full"])
def test_against_the_slow_implementation(inputs, monkeypatch, attention, path):
    monkeypatch.setattr("models.attention.cheapest_path", lambda *args: path)
    visual, semantic, text, padding, index = inputs
    decoder = build(attention=attention, sampling_ratio=0.4)
    kept = {}

    def choose(layer, logits):
        keep = decoder.choose_tokens(layer, logits, torch.Generator().manual_seed(layer))
        kept[layer] = torch.ones_like(logits, dtype=torch.bool) if keep is None else keep
        return keep

    out = candidates(decoder, visual, semantic, text, padding, index, choose=choose)
    for p, image in enumerate(index.tolist()):
        slow = slow_decoder(
            decoder,
            [v[image] for v in visual],
            semantic[image],
            text[p][~padding[p]],
            lambda layer, p=p: (
                kept[layer][p] if kept else torch.ones(QUERIES, [4, 16, 64][layer % 3], dtype=torch.bool)
            ),
        )
        torch.testing.assert_close(out[p], slow, rtol=1e-4, atol=1e-5)


def test_threshold_keeps_what_the_mask_says(inputs):
    visual, semantic, text, padding, index = inputs
    decoder = build(attention="threshold")
    seen = []

    def choose(layer, logits):
        seen.append(logits)
        return decoder.choose_tokens(layer, logits, None)

    candidates(decoder, visual, semantic, text, padding, index, choose=choose)
    # the first layer's field: the mask of the text-conditioned queries, resized to the coarsest grid
    both = decoder.prior_attention(
        torch.cat([decoder.query_content.weight.expand(3, -1, -1), text], 1),
        torch.cat([decoder.query_position.weight.expand(3, -1, -1), text], 1),
        F.pad(padding, (QUERIES, 0)),
    )
    mu = decoder.embed(decoder.prior_feed_forward(both[:, :QUERIES]))
    mask = torch.einsum("pmd,pdhw->pmhw", mu, semantic[index])
    resized = F.interpolate(mask, size=(2, 2), mode="bilinear", align_corners=False).flatten(2)
    torch.testing.assert_close(seen[0], resized, rtol=1e-4, atol=1e-4)


def test_padding_does_not_change_a_prompt(inputs):
    visual, semantic, text, padding, index = inputs
    decoder = build(attention="full")
    together = candidates(decoder, visual, semantic, text, padding, index)
    alone = candidates(decoder, visual, semantic, text[1:2, :3], padding[1:2, :3], index[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-5)


def test_the_generator_is_the_only_randomness(inputs):
    decoder = build()
    masks = lambda seed: candidates(decoder, *inputs, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    first, again, other = masks(5), masks(5), masks(6)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("attention", ["boltzmann", "threshold", "full"])
def test_the_plain_decoder_computes_the_same(inputs, attention):
    visual, semantic, text, padding, index = inputs
    decoder = build(attention=attention, sampling_ratio=0.4)
    fast = candidates(decoder, *inputs, generator=torch.Generator().manual_seed(3))
    plain = plain_decoder(
        decoder, [v[index] for v in visual], semantic[index], text, padding, torch.Generator().manual_seed(3)
    )
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_heads_draw_their_own_tokens_only_for_comparison(inputs):
    shapes = {}
    for per_head in (False, True):
        decoder = build(compare_per_head=per_head)

        def choose(layer, logits, decoder=decoder, per_head=per_head):
            keep = decoder.choose_tokens(layer, logits, torch.Generator().manual_seed(layer))
            shapes[per_head] = keep.shape[:-1]
            return keep

        assert candidates(decoder, *inputs, choose=choose).isfinite().all()
    assert shapes == {False: (3, QUERIES), True: (3, HEADS, QUERIES)}
    assert not ModelConfig().compare_per_head


def test_a_prompts_draws_do_not_depend_on_the_others():
    """A generator for each prompt: its tokens are the same alone, and at another place in the batch."""
    torch.manual_seed(0)
    decoder = Decoder(ModelConfig(width=32, heads=4, feedforward=64, layers=3, queries=4)).eval()
    logits = torch.randn(3, 4, 64)
    generators = lambda places: [torch.Generator().manual_seed(place) for place in places]  # noqa: E731
    together = decoder.choose_tokens(0, logits, generators([0, 1, 2]))
    turned = decoder.choose_tokens(0, logits.flip(0), generators([2, 1, 0]))
    assert torch.equal(together, turned.flip(0))
    for place in range(3):
        alone = decoder.choose_tokens(0, logits[place : place + 1], generators([place]))
        assert torch.equal(together[place : place + 1], alone)
    assert not torch.equal(together[0], decoder.choose_tokens(0, logits[:1], generators([5]))[0])
