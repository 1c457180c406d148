import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from pneumonia_hf.training.losses import (
    BOX_BALANCE,
    BOX_OFFSET,
    BoxTargets,
    Targets,
    XrayLoss,
    weigh_classes,
)

LABELS = np.array([0] * 10 + [1] * 30)
BATCH = torch.tensor([0, 1, 1, 1, 0, 1])
# 40 labels shared by 2 classes: 40 / (2 * 10) and 40 / (2 * 30).
WEIGHTS = torch.tensor([2.0, 2 / 3])


def make_loss(**changes) -> XrayLoss:
    settings = {
        "imbalance": "none",
        "focal_gamma": 2.0,
        "label_smoothing_factor": 0.0,
        "teacher": None,
        "distil_weight": 0.5,
        "distil_temperature": 2.0,
        "box_weight": 0.0,
    }
    return XrayLoss(LABELS, SimpleNamespace(**settings | changes))


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(logits=torch.randn(len(BATCH), 2, generator=generator))


def outputs_of(*logits: list[float]) -> SimpleNamespace:
    return SimpleNamespace(logits=torch.tensor(logits))


def test_weights_balance_both_classes():
    assert weigh_classes(LABELS).tolist() == pytest.approx([2.0, 0.6666667])
    theirs = compute_class_weight("balanced", classes=np.array([0, 1]), y=LABELS)
    assert weigh_classes(LABELS).tolist() == pytest.approx(theirs.tolist())


def test_plain_loss_is_cross_entropy(outputs):
    expected = functional.cross_entropy(outputs.logits, BATCH)
    torch.testing.assert_close(make_loss()(outputs, BATCH), expected)


def test_weighted_and_smoothed_loss_is_torchs_own_times_the_weight_of_the_label(outputs):
    losses = functional.cross_entropy(outputs.logits, BATCH, reduction="none", label_smoothing=0.1)
    expected = (losses * WEIGHTS[BATCH]).mean()
    loss = make_loss(imbalance="weights", label_smoothing_factor=0.1)
    torch.testing.assert_close(loss(outputs, BATCH), expected)


def test_focal_loss_is_that_of_torchvision_weighted_by_class(outputs):
    log_odds = outputs.logits[:, 1] - outputs.logits[:, 0]  # two softmax logits are one sigmoid's
    losses = sigmoid_focal_loss(log_odds, BATCH.float(), alpha=-1, gamma=1.5)
    expected = (losses * WEIGHTS[BATCH]).mean()
    torch.testing.assert_close(
        make_loss(imbalance="focal", focal_gamma=1.5)(outputs, BATCH), expected
    )
    plain = make_loss(imbalance="weights")(outputs, BATCH)
    torch.testing.assert_close(make_loss(imbalance="focal", focal_gamma=0)(outputs, BATCH), plain)


def test_focal_loss_of_a_worked_example():
    # Softmax of (0, ln 4) is (0.2, 0.8), and each label's loss is (1 - p)^2 * -ln p:
    # label 1: 0.2^2 * 0.2231436 = 0.0089257, times its weight of 2/3: 0.0059505
    # label 0: 0.8^2 * 1.6094379 = 1.0300403, times its weight of 2:   2.0600805
    loss = make_loss(imbalance="focal", focal_gamma=2.0)
    found = loss(outputs_of([0.0, math.log(4)], [0.0, math.log(4)]), torch.tensor([1, 0]))
    assert found.item() == pytest.approx((0.0059505 + 2.0600805) / 2, abs=1e-6)


def test_loss_of_a_mixed_image_is_that_of_its_shares():
    # Softmax of (0, ln 4) is (0.2, 0.8): -ln p is 1.6094379 and 0.2231436. The weight of an image
    # is that of its classes, each by its share.
    # (0.25, 0.75): 0.25 * 1.6094379 + 0.75 * 0.2231436 = 0.5697171,
    #               times 0.25 * 2 + 0.75 * 2/3 = 1: 0.5697171
    # (0.5, 0.5):   0.5 * 1.6094379 + 0.5 * 0.2231436 = 0.9162907,
    #               times 0.5 * 2 + 0.5 * 2/3 = 4/3: 1.2217210
    loss = make_loss(imbalance="weights")
    shares = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    found = loss(outputs_of([0.0, math.log(4)], [0.0, math.log(4)]), Targets(shares))
    assert found.item() == pytest.approx((0.5697171 + 1.2217210) / 2, abs=1e-6)


def test_unweighted_mixed_images_have_torchs_own_loss_of_shares(outputs):
    shares = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5], [0.9, 0.1], [0.0, 1.0], [0.6, 0.4]])
    expected = functional.cross_entropy(outputs.logits, shares)
    torch.testing.assert_close(make_loss()(outputs, Targets(shares)), expected)


def test_accumulated_batches_sum_to_the_loss_of_the_whole(outputs):
    loss = make_loss(imbalance="focal")
    parts = [
        loss(SimpleNamespace(logits=outputs.logits[rows]), BATCH[rows], len(BATCH))
        for rows in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(sum(parts), loss(outputs, BATCH))


def test_distillation_loss_of_a_worked_example(outputs):
    # At a temperature of 3 the student gives (0.4, 0.6) and the teacher (0.2, 0.8). Their
    # KL divergence is 0.2 * ln(0.2 / 0.4) + 0.8 * ln(0.8 / 0.6) = -0.1386294 + 0.2301457
    # = 0.0915162, and 3^2 times that is 0.8236460.
    student, teacher = outputs_of([0.0, 3 * math.log(1.5)]), torch.tensor([[0.0, 3 * math.log(4)]])
    ill = torch.tensor([[0.0, 1.0]])
    settings = {"teacher": "folder", "distil_temperature": 3.0}
    found = make_loss(distil_weight=1.0, **settings)(student, Targets(ill, teacher))
    assert found.item() == pytest.approx(0.8236460, abs=1e-6)
    # The student's own loss has no temperature: p = 1.5^3 / (1 + 1.5^3) = 0.7714286,
    # and -ln p = 0.2595112. A quarter of the teacher's: 0.75 * 0.2595112 + 0.25 * 0.8236460.
    found = make_loss(distil_weight=0.25, **settings)(student, Targets(ill, teacher))
    assert found.item() == pytest.approx(0.4005449, abs=1e-6)
    agreeing = Targets(functional.one_hot(BATCH, 2).float(), outputs.logits.clone())
    same = make_loss(distil_weight=1.0, **settings)(outputs, agreeing)
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_focal_loss_of_a_confident_image_has_a_gradient():
    logits = torch.tensor([[-30.0, 30.0]], requires_grad=True)
    loss = make_loss(imbalance="focal", focal_gamma=0.5)
    loss(SimpleNamespace(logits=logits), torch.tensor([1])).backward()
    assert torch.isfinite(logits.grad).all()


def test_loss_of_the_boxes_is_that_of_the_positions_of_known_images():
    generator = torch.Generator().manual_seed(3)
    found = torch.randn(3, 2, 2, generator=generator)
    masks = torch.zeros(3, 1, 4, 4)
    masks[0, 0, :2, :3] = 1  # the upper left position, and half of the upper right one
    known = torch.tensor([True, True, False])
    shares = torch.tensor([[[1, 0.5], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]])
    logits = torch.zeros(3, 2)
    classes = functional.one_hot(torch.tensor([1, 0, 1]), 2).float()
    targets = Targets(classes, boxes=BoxTargets(masks, known, lambda: found))
    losses = functional.binary_cross_entropy_with_logits(
        found - BOX_OFFSET, shares, reduction="none"
    )
    losses[0, 0, 0] *= BOX_BALANCE
    expected = math.log(2) + 0.7 * (losses[0].mean() + losses[1].mean()) / 3
    loss = make_loss(box_weight=0.7)
    assert loss(outputs_of(*logits.tolist()), targets).item() == pytest.approx(expected.item())
    of_images = make_loss(box_weight=0.0)(outputs_of(*logits.tolist()), targets)
    assert of_images.item() == pytest.approx(math.log(2))


def test_three_classes_are_weighed_so_that_half_is_pneumonia():
    labels = np.repeat([0, 1, 2], [10, 30, 60])
    weights = weigh_classes(labels).numpy()
    sums = np.bincount(labels, weights[labels])
    assert sums == pytest.approx([25, 50, 25])
    assert weigh_classes(np.repeat([0, 1], [10, 30])).numpy() == pytest.approx([2, 2 / 3])
