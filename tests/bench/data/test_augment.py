import numpy as np
import torch

from bench.data import augment as module
from bench.data.augment import augment


def batch(number=64, size=32):
    images = torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(0)) * 200 + 55
    masks = torch.zeros(2 * number, size, size)
    masks[::2, 10:20, 8:16] = 1
    masks[1::2, 4:7, 20:24] = 1
    return images, masks, torch.arange(number).repeat_interleave(2)


def test_half_of_the_images_change_and_masks_follow_their_image():
    images, masks, index = batch()
    out, moved = augment(images, masks, index, torch.Generator().manual_seed(1))
    changed = (out != images).flatten(1).any(1)
    assert 0.3 < changed.float().mean() < 0.7
    kept = ~changed[index]
    torch.testing.assert_close(moved[kept], masks[kept])
    assert set(moved.unique().tolist()) <= {0.0, 1.0}


def test_masks_move_with_the_pixels_under_them(monkeypatch):
    monkeypatch.setattr(module, "PROBABILITY", 1.0)
    images, masks, index = batch()
    images[:] = 20.0
    for row, image in enumerate(index.tolist()):
        images[image][:, masks[row] > 0] = 220.0
    out, moved = augment(images, masks, index, torch.Generator().manual_seed(2))
    for image in range(len(out)):
        union = moved[index == image].amax(0) > 0
        assert out[image][:, union].mean() > 180


def test_quarter_turns_are_exact_without_crop(monkeypatch):
    monkeypatch.setattr(module, "PROBABILITY", 1.0)
    monkeypatch.setattr(module, "SHIFT", 0.0)
    monkeypatch.setattr(module, "SCALE", 0.0)
    images, masks, index = batch(number=16)
    out, moved = augment(images, masks, index, torch.Generator().manual_seed(3))
    turns_seen = set()
    for image in range(16):
        turns = [k for k in range(4) if np.allclose(out[image], torch.rot90(images[image], k, (1, 2)), atol=1e-2)]
        assert len(turns) == 1
        turns_seen.add(turns[0])
        torch.testing.assert_close(moved[2 * image], torch.rot90(masks[2 * image], turns[0], (0, 1)))
    assert turns_seen == {0, 1, 2, 3}


def test_one_pixel_survives_wherever_it_lands(monkeypatch):
    monkeypatch.setattr(module, "PROBABILITY", 1.0)
    images = torch.zeros(200, 3, 32, 32)
    masks = torch.zeros(200, 32, 32)
    masks[:, 15, 17] = 1
    _, moved = augment(images, masks, torch.arange(200), torch.Generator().manual_seed(5))
    assert (moved.sum((1, 2)) >= 1).all()
    assert (moved.sum((1, 2)) <= 4).all()


def test_an_object_cropped_out_leaves_an_empty_mask(monkeypatch):
    monkeypatch.setattr(module, "PROBABILITY", 1.0)
    masks = torch.zeros(200, 32, 32)
    masks[:, 0, 0] = 1
    _, moved = augment(torch.zeros(200, 3, 32, 32), masks, torch.arange(200), torch.Generator().manual_seed(6))
    assert set(moved.sum((1, 2)).tolist()) >= {0.0, 1.0}


def test_the_same_generator_gives_the_same_batch():
    images, masks, index = batch(number=8)
    first, second = (augment(images, masks, index, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
