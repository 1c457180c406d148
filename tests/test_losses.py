from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from pneumonia_hf.losses import Targets, XrayLoss, weigh_classes

LABELS = np.array([0] * 10 + [1] * 30)
BATCH = torch.tensor([0, 1, 1, 1, 0, 1])


def make_loss(**changes) -> XrayLoss:
    settings = {
        "imbalance": "none",
        "focal_gamma": 2.0,
        "label_smoothing_factor": 0.0,
        "teacher": None,
        "distil_weight": 0.5,
        "distil_temperature": 2.0,
    }
    return XrayLoss(LABELS, SimpleNamespace(**settings | changes))


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(logits=torch.randn(len(BATCH), 2, generator=generator))


def test_weights_make_both_classes_count_alike():
    weights = weigh_classes(LABELS)
    assert weights.tolist() == pytest.approx([40 / 20, 40 / 60])
    assert weights[0] * 10 == pytest.approx(weights[1] * 30)


def test_plain_loss_is_cross_entropy(outputs):
    expected = functional.cross_entropy(outputs.logits, BATCH)
    torch.testing.assert_close(make_loss()(outputs, BATCH), expected)


def test_weighted_and_smoothed_loss_is_torchs_own_times_the_weight_of_the_label(outputs):
    losses = functional.cross_entropy(outputs.logits, BATCH, reduction="none", label_smoothing=0.1)
    expected = (losses * weigh_classes(LABELS)[BATCH]).mean()
    loss = make_loss(imbalance="weights", label_smoothing_factor=0.1)
    torch.testing.assert_close(loss(outputs, BATCH), expected)


def test_focal_loss_is_that_of_torchvision_weighted_by_class(outputs):
    margins = outputs.logits[:, 1] - outputs.logits[:, 0]  # two softmax logits are one sigmoid's
    losses = sigmoid_focal_loss(margins, BATCH.float(), alpha=-1, gamma=1.5)
    expected = (losses * weigh_classes(LABELS)[BATCH]).mean()
    torch.testing.assert_close(
        make_loss(imbalance="focal", focal_gamma=1.5)(outputs, BATCH), expected
    )
    plain = make_loss(imbalance="weights")(outputs, BATCH)
    torch.testing.assert_close(make_loss(imbalance="focal", focal_gamma=0)(outputs, BATCH), plain)


def test_mixed_picture_counts_as_its_shares(outputs):
    loss = make_loss(imbalance="weights")
    share = torch.tensor([[0.3, 0.7]] * len(BATCH))
    log_p = outputs.logits.log_softmax(dim=1)
    weights = weigh_classes(LABELS)
    expected = (share @ weights * -(share * log_p).sum(dim=1)).mean()
    torch.testing.assert_close(loss(outputs, Targets(share)), expected)


def test_accumulated_batches_sum_to_the_loss_of_the_whole(outputs):
    loss = make_loss(imbalance="focal")
    parts = [
        loss(SimpleNamespace(logits=outputs.logits[rows]), BATCH[rows], len(BATCH))
        for rows in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(sum(parts), loss(outputs, BATCH))


def test_teacher_is_followed_by_its_softened_word(outputs):
    teacher = torch.randn(len(BATCH), 2, generator=torch.Generator().manual_seed(1))
    classes = functional.one_hot(BATCH, 2).float()
    all_teacher = make_loss(teacher="folder", distil_weight=1.0, distil_temperature=3.0)
    theirs = (teacher / 3).softmax(dim=1)
    expected = 9 * functional.kl_div(
        (outputs.logits / 3).log_softmax(dim=1), theirs, reduction="batchmean"
    )
    torch.testing.assert_close(all_teacher(outputs, Targets(classes, teacher)), expected)
    same = all_teacher(outputs, Targets(classes, outputs.logits.clone()))
    assert same.item() == pytest.approx(0, abs=1e-6)
    half = make_loss(teacher="folder", distil_weight=0.25, distil_temperature=3.0)
    plain = functional.cross_entropy(outputs.logits, BATCH)
    torch.testing.assert_close(
        half(outputs, Targets(classes, teacher)), 0.75 * plain + 0.25 * expected
    )


def test_focal_loss_of_a_certain_picture_has_a_gradient():
    logits = torch.tensor([[-30.0, 30.0]], requires_grad=True)
    loss = make_loss(imbalance="focal", focal_gamma=0.5)
    loss(SimpleNamespace(logits=logits), torch.tensor([1])).backward()
    assert torch.isfinite(logits.grad).all()
