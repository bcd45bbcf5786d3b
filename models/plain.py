"""BoltzFormer computed as its authors' released code does: what the fast forms are compared with and timed against.

The parameters and the function are those of `models.segmenter`; the work is all of it: keys and values of every token,
a boolean mask, attention weights returned, S and every candidate mask made whole, every prompt with its own copy of the
image features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import CrossAttention
from models.backbones import normalise
from models.decoder import Decoder, TokenChoice
from models.pigma import PiGMA
from models.pixel_decoder import ConvBlock, PixelDecoder
from models.position import sine_position
from models.segmenter import BoltzFormer


def plain_cross_attention(
    attention: CrossAttention,
    queries: Tensor,
    query_position: Tensor,
    features: Tensor,
    grid: tuple[int, int],
    level: Tensor,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """queries (P, m, d), features (P, H * W, d), keep (P, m, H * W) -> queries (P, m, d), weights (P, m, H * W)."""
    width, heads = queries.shape[-1], attention.heads
    values = features + level
    keys = values + sine_position(*grid, width, features.device)
    blocked = None if keep is None else ~keep.repeat_interleave(heads, dim=0)
    attended, weights = F.multi_head_attention_forward(
        (queries + query_position).transpose(0, 1),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        width,
        heads,
        None,
        torch.cat((attention.query.bias, attention.key.bias, attention.value.bias)),
        None,
        None,
        False,
        0.0,
        attention.output.weight,
        attention.output.bias,
        training=attention.training,
        need_weights=True,
        attn_mask=blocked,
        use_separate_proj_weight=True,
        q_proj_weight=attention.query.weight,
        k_proj_weight=attention.key.weight,
        v_proj_weight=attention.value.weight,
    )
    return attention.norm(queries + attended.transpose(0, 1)), weights


def plain_pixel_decoder(decoder: PixelDecoder, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Backbone maps of strides 4, 8, 16, 32 -> [V32, V16, V8], and S whole."""

    def block(module: ConvBlock, x: Tensor) -> Tensor:
        convolution, norm, activation = module
        x = norm(convolution(x))
        return F.relu(x) if isinstance(activation, nn.ReLU) else x

    coarse = decoder.input_projection(maps[3])
    rows, columns = coarse.shape[-2:]
    tokens = coarse.flatten(2).transpose(1, 2)
    position = sine_position(rows, columns, coarse.shape[1], coarse.device)
    for layer in decoder.encoder:
        keys = tokens + position
        tokens = layer.norm1(tokens + layer.attention(keys, keys, tokens, need_weights=False)[0])
        tokens = layer.norm2(tokens + layer.linear2(F.relu(layer.linear1(tokens))))
    x = block(decoder.output32, tokens.transpose(1, 2).unflatten(2, (rows, columns)))
    pyramid = [x]
    for lateral, output, finer in zip(decoder.laterals, decoder.outputs, maps[2::-1], strict=True):
        x = block(output, block(lateral, finer) + F.interpolate(x, size=finer.shape[-2:], mode="nearest"))
        pyramid.append(x)
    return pyramid[:3], decoder.mask_features(x)


def plain_decoder(
    decoder: Decoder,
    visual: list[Tensor],
    semantic: Tensor,
    text: Tensor,
    text_padding: Tensor,
    generator: torch.Generator | None = None,
    choose: TokenChoice | None = None,
) -> Tensor:
    """`Decoder.forward` for one image per prompt, and S as a tensor (P, d, h, w) -> candidate logits (P, m, h, w)."""
    choose = choose or (lambda layer, logits: decoder.choose_tokens(layer, logits, generator))
    prompts, count = text.shape[0], decoder.config.queries
    queries = decoder.query_content.weight.expand(prompts, -1, -1)
    position = torch.cat((decoder.query_position.weight.expand(prompts, -1, -1), text.detach()), dim=1)
    padding = F.pad(text_padding, (count, 0), value=False)

    def masks() -> Tensor:
        return torch.einsum("pmd,pdyx->pmyx", decoder.embed(queries), semantic)

    if decoder.config.text_prior:
        both = decoder.prior_attention(torch.cat((queries, text), dim=1), position, padding)
        queries, text = both[:, :count], both[:, count:]
        queries = decoder.prior_feed_forward(queries)
    for layer in range(decoder.config.layers):
        level = layer % len(visual)
        grid = tuple(visual[level].shape[-2:])
        keep = None
        if decoder.config.attention != "full":
            with torch.no_grad():
                resized = F.interpolate(masks(), size=grid, mode="bilinear", align_corners=False)
                keep = choose(layer, resized.flatten(2))
        queries, _ = plain_cross_attention(
            decoder.cross_attention[layer],
            queries,
            decoder.query_position.weight,
            visual[level].flatten(2).transpose(1, 2),
            grid,
            decoder.level.weight[level],
            keep,
        )
        both = decoder.self_attention[layer](torch.cat((queries, text), dim=1), position, padding)
        queries, text = both[:, :count], both[:, count:]
        queries = decoder.feed_forward[layer](queries)
    return masks()


def plain_pigma(pigma: PiGMA, candidates: Tensor, images: Tensor) -> Tensor:
    """Fig. 3 as drawn: candidates (P, m, h, w) and normalised images (P, 3, H, W) -> logits (P, 2h, 2w)."""
    coarse = candidates.shape[-2:]
    fine = (2 * coarse[0], 2 * coarse[1])

    def image_at(size: tuple[int, int]) -> Tensor:
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False)

    x = pigma.deconvolution(torch.cat((image_at(coarse), candidates), dim=1))
    correction = pigma.convolution(torch.cat((image_at(fine), x), dim=1))
    ensemble = F.interpolate(candidates.mean(1, keepdim=True), size=fine, mode="bilinear", align_corners=False)
    return ((correction + ensemble) / 2).squeeze(1)


def plain_forward(
    model: BoltzFormer,
    images: Tensor,
    prompts: list[str],
    image_index: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`BoltzFormer.forward`, the same arguments and logits."""
    images = normalise(images)
    visual, semantic = plain_pixel_decoder(model.image_encoder.pixel_decoder, model.image_encoder.backbone(images))
    text, padding = model.text_encoder(prompts)
    visual, semantic = [v[image_index] for v in visual], semantic[image_index]
    candidates = plain_decoder(model.decoder, visual, semantic, text, padding, generator)
    return candidates.mean(1) if model.pigma is None else plain_pigma(model.pigma, candidates, images[image_index])
