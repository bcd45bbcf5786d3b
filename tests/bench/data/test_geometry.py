import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data.geometry import image_to_square, logits_to_original, mask_to_square, masks_from_logits
from models.losses import segmentation_loss


@settings(max_examples=40, deadline=None)
@given(height=st.integers(3, 40), width=st.integers(3, 40), factor=st.integers(1, 4), seed=st.integers(0, 99))
def test_masks_survive_the_way_there_and_back(height, width, factor, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    square = mask_to_square(mask, max(height, width) * factor)
    logits = torch.from_numpy(square)[None].float() * 2 - 1
    back = masks_from_logits(logits, height, width)[0]
    np.testing.assert_array_equal(back, mask)


def test_no_object_vanishes_when_the_image_shrinks():
    mask = np.zeros((300, 200), bool)
    mask[117, 43] = True
    square = mask_to_square(mask, 64)
    assert np.argwhere(square).tolist() == [[int(117.5 * 64 / 300), int(43.5 * 64 / 300)]]


def test_no_small_lesion_vanishes_beside_a_large_one():
    mask = np.zeros((128, 128), bool)
    mask[20:60, 20:60] = True
    mask[100, 101] = mask[3, 90] = True
    square = mask_to_square(mask, 64)
    assert square[50, 50]
    assert square[1, 45]
    assert square.sum() == 20 * 20 + 2


def test_large_masks_shrink_to_the_half_covered_pixels():
    mask = np.zeros((64, 64), bool)
    mask[10:31, 20:41] = True
    by_hand = mask.reshape(32, 2, 32, 2).mean((1, 3)) >= 0.5
    np.testing.assert_array_equal(mask_to_square(mask, 32), by_hand)


def test_images_are_padded_at_the_right_and_bottom():
    image = np.full((30, 50, 3), 200, np.uint8)
    square = image_to_square(image, 50)
    assert (square[:30] == 200).all()
    assert (square[30:] == 0).all()


def test_an_object_of_three_pixels_that_the_loss_calls_learned_is_predicted():
    target = torch.zeros(1, 64, 64)
    target[0, [14, 14, 15], [41, 42, 41]] = 1
    logits = torch.full((1, 32, 32), -10.0, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(300):
        loss = segmentation_loss(logits, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.02
    np.testing.assert_array_equal(masks_from_logits(logits, 64, 64), target.numpy() > 0.5)


def test_logits_of_a_larger_frame_are_cut_and_resized():
    ramp = torch.linspace(-1, 1, 80).expand(1, 80, 80)
    out = logits_to_original(ramp, 20, 40)
    assert out.shape == (1, 20, 40)
    torch.testing.assert_close(out[0, 5, 2:-2], ramp[0, 0].reshape(40, 2).mean(1)[2:-2], atol=1e-4, rtol=0)
