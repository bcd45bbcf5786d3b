"""Every form of the sampled cross-attention against torch's own attention with a mask, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from models.attention import CrossAttention, cheapest_path
from models.gathered import token_sets
from models.plain import plain_cross_attention
from models.position import sine_position

PATHS = ["projected", "absorbed", "gathered"]
WIDTH, HEADS, GRID = 32, 4, (6, 5)
TOKENS = GRID[0] * GRID[1]


def case(prompts=3, images=2, queries=4, ratio=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    keep = torch.rand(prompts, queries, TOKENS, generator=generator) < ratio
    keep |= ~keep.any(-1, keepdim=True)
    index = torch.randint(images, (prompts,), generator=generator)
    return draw(prompts, queries, WIDTH), draw(queries, WIDTH), draw(images, TOKENS, WIDTH), draw(WIDTH), index, keep


def build():
    torch.manual_seed(1)
    attention = CrossAttention(WIDTH, HEADS)
    for projection in (attention.query, attention.key, attention.value, attention.output):
        torch.nn.init.normal_(projection.bias)  # zero at the start: a forgotten one would not show
    return attention


def outputs_and_gradients(attention, forward, leaves):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    attention.zero_grad()
    out = forward(*leaves)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    parameters = {name: p.grad for name, p in attention.named_parameters() if p.grad is not None}
    return out, [leaf.grad for leaf in leaves], parameters


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("images", "ratio"), [(1, 0.2), (2, 0.2), (2, 0.0), (2, None)])
def test_every_form_equals_masked_attention(path, images, ratio):
    attention = build()
    queries, position, features, level, index, keep = case(images=images, ratio=ratio or 0.0)
    if ratio is None:
        keep = None
    elif ratio == 0.2:
        keep[1, 2] = True  # a query that attends to everything, beside others that do not

    def fast(queries, position, features, level):
        return attention(queries, position, features, GRID, level, index, keep, path)

    def plain(queries, position, features, level):
        return plain_cross_attention(attention, queries, position, features[index], GRID, level, keep)[0]

    leaves = (queries, position, features, level)
    out, leaf_gradients, gradients = outputs_and_gradients(attention, fast, leaves)
    expected, expected_leaves, expected_gradients = outputs_and_gradients(attention, plain, leaves)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for actual, wanted in zip(leaf_gradients, expected_leaves, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)
    for name, wanted in expected_gradients.items():
        torch.testing.assert_close(gradients[name], wanted, rtol=1e-4, atol=2e-5)


def test_heads_with_their_own_tokens():
    attention = build()
    queries, position, features, level, index, _ = case()
    keep = torch.rand(3, HEADS, 4, TOKENS, generator=torch.Generator().manual_seed(5)) < 0.3
    keep[..., 0] = True
    out = attention(queries, position, features, GRID, level, index, keep)
    x = features[index] + level
    split = lambda t: t.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # noqa: E731
    q, v = split(attention.query(queries + position)), split(attention.value(x))
    k = split(attention.key(x + sine_position(*GRID, WIDTH)))
    scores = (q @ k.transpose(-1, -2) / (WIDTH / HEADS) ** 0.5).masked_fill(~keep, -torch.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, attention.norm(queries + attention.output(mixed)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_bf16_is_near(path):
    attention = build()
    queries, position, features, level, index, keep = case()
    exact = attention(queries, position, features, GRID, level, index, keep, "projected")
    with torch.autocast("cpu", torch.bfloat16):
        near = attention(queries, position, features.bfloat16(), GRID, level, index, keep, path)
    assert (near - exact).abs().max() < 0.1
    near.float().sum().backward()
    assert attention.value.weight.grad.isfinite().all()


@pytest.mark.parametrize("path", PATHS)
def test_what_was_cached_while_predicting_serves_in_training(path):
    attention = CrossAttention(WIDTH, HEADS)
    grid = (3, 2 + PATHS.index(path))  # a grid of its own: its position is not cached yet
    tokens = grid[0] * grid[1]
    features, index = torch.randn(1, tokens, WIDTH), torch.zeros(1, dtype=torch.int64)
    arguments = (torch.randn(1, 2, WIDTH), torch.zeros(2, WIDTH), features, grid, torch.zeros(WIDTH), index)
    keep = torch.ones(1, 2, tokens, dtype=torch.bool)
    with torch.inference_mode():
        attention(*arguments, keep, path)
    attention(*arguments, keep, path).sum().backward()
    assert attention.key.weight.grad.isfinite().all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 4), st.floats(0, 1), st.sampled_from([1, 4, 128]), st.integers(0, 99))
def test_token_sets_hold_the_kept_tokens(prompts, queries, ratio, multiple, seed):
    *_, index, keep = case(prompts=prompts, queries=queries, ratio=ratio, seed=seed)
    sets = token_sets(keep, index, keep.sum(-1), multiple)
    assert len(sets.bounds) == prompts * queries + 1
    for r in range(prompts * queries):
        part = slice(sets.bounds[r], sets.bounds[r + 1])
        rows = sets.rows[part] if sets.padding is None else sets.rows[part][~sets.padding[part]]
        p, q = divmod(r, queries)
        assert rows.tolist() == [int(index[p]) * TOKENS + t for t in keep[p, q].nonzero().flatten().tolist()]
        assert (sets.query[part] == r).all()
        assert (part.stop - part.start) % multiple == 0


def test_the_cost_rule_reads_fewer_tokens_where_few_are_kept():
    query, features = torch.empty(1, 10, 8, 64), torch.empty(1, 16384, 512)
    assert cheapest_path(query, features, torch.full((1, 10), 1600)) == "gathered"
    assert cheapest_path(query, features, None) == "absorbed"
    many, small = torch.empty(4, 101, 8, 64), torch.empty(1, 64, 512)
    assert cheapest_path(many, small, torch.full((4, 101), 32)) == "projected"


def test_no_form_projects_more_tokens_than_it_says(monkeypatch):
    seen = []
    original = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: seen.append(x.shape) or original(x, *rest))
    queries, position, features, level, index, keep = case(prompts=1, images=1)
    keep[:] = False
    keep[..., :3] = True
    attention = build()
    for path, projected in (("projected", TOKENS), ("absorbed", 0), ("gathered", 0)):
        seen.clear()
        attention(queries, position, features, GRID, level, index, keep, path)
        assert [shape[1] for shape in seen if shape[1] != queries.shape[1]] == ([projected] * 2 if projected else [])


def test_a_prediction_before_and_after_training_changes_nothing():
    attention, (queries, position, features, level, index, keep) = build(), case()

    def run(keep):
        return attention(queries, position, features, GRID, level, index, keep, path="gathered")

    with torch.inference_mode():
        few = run(keep)  # the buffer of the sets is made here, and is used with gradients below
    more = keep | (torch.rand(keep.shape, generator=torch.Generator().manual_seed(5)) < 0.5)
    run(more).sum().backward()
    run(keep).sum().backward()
    with torch.inference_mode():
        torch.testing.assert_close(run(keep), few, rtol=0, atol=0)


def test_in_bf16_many_short_sets_are_not_gathered():
    query, features, counts = torch.empty(1, 101, 8, 64), torch.empty(1, 1024, 512), torch.full((1, 101), 102)
    assert cheapest_path(query, features, counts) == "gathered"
    assert cheapest_path(query.bfloat16(), features.bfloat16(), counts) == "projected"
