"""The choice among several masks, against a loop over prompts and masks."""

import pytest
import torch
from torch.nn import functional as F

from baselines.multimask import best_mask, multimask_loss
from models.losses import segmentation_loss


@pytest.fixture
def outputs():
    """Logits of three masks (4, 3, 8, 8), their predicted IoU (4, 3), and targets of twice the size."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(4, 3, 8, 8, generator=generator) * 4
    quality = torch.rand(4, 3, generator=generator)
    target = (torch.rand(4, 16, 16, generator=generator) > 0.7).float()
    return masks.requires_grad_(), quality.requires_grad_(), target


def test_the_mask_of_the_highest_predicted_iou_is_taken(outputs):
    masks, quality, _ = outputs
    expected = [
        prompt[max(range(3), key=scores.__getitem__)] for prompt, scores in zip(masks, quality.tolist(), strict=True)
    ]
    assert torch.equal(best_mask(masks, quality), torch.stack(expected))


@pytest.mark.parametrize("distance", [F.mse_loss, F.l1_loss])
def test_the_loss_is_that_of_the_best_mask_and_of_every_iou(outputs, distance):
    masks, quality, target = outputs
    total, iou_errors, best = 0.0, [], []
    for row in range(4):
        losses = [segmentation_loss(mask[None], target[row : row + 1]) for mask in masks[row]]
        total += min(losses) / 4
        best.append(losses.index(min(losses)))
        for mask, predicted in zip(masks[row], quality[row], strict=True):
            full = F.interpolate(mask[None, None], size=(16, 16), mode="bicubic", antialias=True)[0, 0] > 0
            iou = (full & (target[row] > 0)).sum() / (full | (target[row] > 0)).sum()
            iou_errors.append(distance(predicted, iou))
    loss = multimask_loss(masks, quality, target, distance)
    torch.testing.assert_close(loss, total + torch.stack(iou_errors).mean())

    loss.backward()
    trained = masks.grad.flatten(2).abs().sum(-1) > 0
    assert trained.nonzero()[:, 1].tolist() == best
    assert trained.sum() == 4
    assert (quality.grad != 0).all()


def test_a_mask_that_is_right_with_its_iou_known_costs_nothing(outputs):
    target = outputs[2]
    masks = torch.stack([-40 * (2 * target - 1), 40 * (2 * target - 1)], dim=1)
    assert multimask_loss(masks, torch.tensor([[0.0, 1.0]] * 4), target, F.mse_loss) < 1e-4
    assert multimask_loss(masks, torch.tensor([[1.0, 0.0]] * 4), target, F.mse_loss) > 0.9
