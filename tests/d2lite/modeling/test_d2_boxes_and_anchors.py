"""Anchors, box codes and their losses, matching, sampling."""

from __future__ import annotations

import math

import pytest
import torch
from d2_access import d2_module

from elsa_det import d2

# ---------------------------------------------------------------- anchors


def test_anchors_of_two_levels():
    generator = d2.DefaultAnchorGenerator(sizes=[[32], [64]], aspect_ratios=[0.25, 1, 4], strides=[4, 8], offset=0.5)
    fine, coarse = generator([torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 1)])
    cell = [[-32, -8, 32, 8], [-16, -16, 16, 16], [-8, -32, 8, 32]]
    expected = [[x0 + x, y0 + 2, x1 + x, y1 + 2] for x in (2, 6) for x0, y0, x1, y1 in cell]
    assert fine.tensor.tolist() == expected
    assert coarse.tensor.tolist() == [[2 * v + 4 for v in box] for box in cell]
    assert generator.num_anchors == generator.num_cell_anchors == [3, 3]
    assert generator.box_dim == 4
    assert generator.state_dict() == {}
    assert [name for name, _ in generator.named_buffers()] == ["cell_anchors.0", "cell_anchors.1"]


def test_anchors_go_row_by_row_without_offset():
    generator = d2.DefaultAnchorGenerator(sizes=[[2]], aspect_ratios=[[1.0]], strides=[10], offset=0.0)
    (anchors,) = generator([torch.zeros(1, 1, 2, 2)])
    assert anchors.get_centers().tolist() == [[0, 0], [10, 0], [0, 10], [10, 10]]


def test_sizes_come_before_ratios():
    generator = d2.DefaultAnchorGenerator(sizes=[8, 16], aspect_ratios=[1.0, 4.0], strides=[4], offset=0.0)
    (anchors,) = generator([torch.zeros(1, 1, 1, 1)])
    assert anchors.tensor[:, 2:].tolist() == [[4, 4], [2, 8], [8, 8], [4, 16]]


@pytest.mark.parametrize("change", [{"sizes": []}, {"sizes": 32}, {"sizes": [[1], [2], [3]]}, {"offset": 1.0}])
def test_bad_anchor_arguments(change):
    arguments = {"sizes": [[32], [64]], "aspect_ratios": [1.0], "strides": [4, 8], **change}
    with pytest.raises((AssertionError, ValueError)):
        d2.DefaultAnchorGenerator(**arguments)


# ---------------------------------------------------------------- box codes

SOURCE = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
TARGET = torch.tensor([[5.0, 5.0, 25.0, 15.0]])


def test_code_by_hand():
    deltas = d2.Box2BoxTransform(weights=(10, 10, 5, 5)).get_deltas(SOURCE, TARGET)
    torch.testing.assert_close(deltas, torch.tensor([[10.0, 0.0, 5 * math.log(2), -5 * math.log(2)]]))


def test_code_round_trip_for_several_classes():
    transform = d2.Box2BoxTransform(weights=[1.0, 2.0, 3.0, 4.0])
    generator = torch.Generator().manual_seed(0)
    source, *targets = (
        torch.cat([corner, corner + 1 + 9 * torch.rand(5, 2, generator=generator)], dim=1)
        for corner in 20 * torch.rand(3, 5, 2, generator=generator)
    )
    deltas = torch.cat([transform.get_deltas(source, target) for target in targets], dim=1)
    torch.testing.assert_close(transform.apply_deltas(deltas, source), torch.cat(targets, dim=1))


def test_growth_is_clamped_and_decoding_is_in_float32():
    transform = d2.Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    decoded = transform.apply_deltas(
        torch.tensor([[0.0, 0.0, 50.0, 0.0]]).half(), torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    )
    torch.testing.assert_close(decoded, torch.tensor([[-492.0, 0.0, 508.0, 16.0]]))
    assert d2.Box2BoxTransform(weights=(1, 1, 1, 1), scale_clamp=0.5).scale_clamp == 0.5


def test_codes_of_nothing():
    transform = d2.Box2BoxTransform(weights=(1, 1, 1, 1))
    empty = torch.zeros(0, 4)
    assert transform.get_deltas(empty, empty).shape == (0, 4)
    assert transform.apply_deltas(torch.zeros(0, 12), empty).shape == (0, 12)


def test_a_source_without_width_is_an_error():
    with pytest.raises((AssertionError, ValueError)):
        d2.Box2BoxTransform(weights=(1, 1, 1, 1)).get_deltas(torch.tensor([[5.0, 0.0, 5.0, 9.0]]), TARGET)


# ---------------------------------------------------------------- regression losses


def dense_loss(loss_type: str, beta: float = 0.0) -> torch.Tensor:
    """Two images, two levels of one anchor each; image 0 has no foreground, image 1 has its first anchor."""
    loss = d2_module("modeling.box_regression")._dense_box_regression_loss
    anchors = [d2.Boxes(torch.tensor([[0.0, 0.0, 2.0, 2.0]])), d2.Boxes(torch.tensor([[9.0, 9.0, 11.0, 11.0]]))]
    deltas = [torch.zeros(2, 1, 4), torch.full((2, 1, 4), 7.0)]
    boxes = [torch.zeros(2, 4), torch.tensor([[1.0, 0.0, 3.0, 2.0], [0.0, 0.0, 1.0, 1.0]])]
    foreground = torch.tensor([[False, False], [True, False]])
    transform = d2.Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    return loss(anchors, transform, deltas, boxes, foreground, box_reg_loss_type=loss_type, smooth_l1_beta=beta)


@pytest.mark.parametrize(
    ("loss_type", "beta", "expected"),
    [
        ("smooth_l1", 0.0, 0.5),  # half of the width to the right
        ("smooth_l1", 1.0, 0.125),
        ("giou", 0.0, 1 - 2 / 6),  # union and enclosing box are both 6
        ("diou", 0.0, 1 - 2 / 6 + 1 / 13),  # centres 1 apart, diagonal² 3² + 2²
        ("ciou", 0.0, 1 - 2 / 6 + 1 / 13),  # the same shape
    ],
)
def test_dense_regression_loss_by_hand(loss_type, beta, expected):
    assert dense_loss(loss_type, beta).item() == pytest.approx(expected, abs=1e-6)


def test_unknown_regression_loss():
    with pytest.raises(ValueError, match="l7"):
        dense_loss("l7")


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
def test_regression_loss_of_nothing_is_zero_and_differentiable(loss_type):
    loss = d2_module("modeling.box_regression")._dense_box_regression_loss
    deltas = torch.zeros(1, 3, 4, requires_grad=True)
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(3, 1)
    value = loss(
        [d2.Boxes(boxes)],
        d2.Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        [deltas],
        [boxes],
        torch.zeros(1, 3, dtype=torch.bool),
        box_reg_loss_type=loss_type,
    )
    value.backward()
    assert value.item() == 0
    assert deltas.grad is not None
    assert torch.count_nonzero(deltas.grad) == 0


# ---------------------------------------------------------------- matching

QUALITY = torch.tensor([[0.1, 0.5, 0.4, 0.0, 0.29], [0.2, 0.3, 0.7, 0.0, 0.1], [0.0, 0.1, 0.2, 0.25, 0.25]])


def test_ranges_of_quality():
    index, labels = d2.Matcher([0.3, 0.5], [0, -1, 1])(QUALITY)
    assert index.tolist() == [1, 0, 1, 2, 0]
    assert labels.tolist() == [0, 1, 1, 0, 0]
    assert (index.dtype, labels.dtype) == (torch.int64, torch.int8)
    assert d2.Matcher([0.3, 0.6], [0, -1, 1])(QUALITY)[1].tolist() == [0, -1, 1, 0, 0]


def test_the_best_of_each_ground_truth_is_positive_ties_included():
    index, labels = d2.Matcher([0.3, 0.6], [0, -1, 1], allow_low_quality_matches=True)(QUALITY)
    assert labels.tolist() == [0, 1, 1, 1, 1]
    assert index.tolist() == [1, 0, 1, 2, 0]  # number 4 is labelled for ground truth 2, and still belongs to 0


def test_no_ground_truth_and_no_predictions():
    matcher = d2.Matcher([0.3, 0.5], [-1, 0, 1], allow_low_quality_matches=True)
    index, labels = matcher(torch.zeros(0, 3))
    assert (index.tolist(), labels.tolist()) == ([0, 0, 0], [-1, -1, -1])
    assert (index.dtype, labels.dtype) == (torch.int64, torch.int8)
    assert [len(result) for result in matcher(torch.zeros(3, 0))] == [0, 0]


def test_thresholds_are_kept_with_both_ends():
    given = [0.5]
    matcher = d2.Matcher(given, [0, 1])
    assert list(matcher.thresholds) == [-math.inf, 0.5, math.inf]
    assert given == [0.5]


@pytest.mark.parametrize(
    ("thresholds", "labels"), [([0.0], [0, 1]), ([0.5, 0.3], [0, -1, 1]), ([0.5], [0]), ([0.5], [0, 2])]
)
def test_bad_matchers(thresholds, labels):
    with pytest.raises((AssertionError, ValueError)):
        d2.Matcher(thresholds, labels)


@pytest.mark.parametrize("quality", [torch.tensor([[float("nan")]]), torch.tensor([[-0.1]]), torch.zeros(3)])
def test_bad_qualities(quality):
    with pytest.raises((AssertionError, ValueError)):
        d2.Matcher([0.5], [0, 1])(quality)


# ---------------------------------------------------------------- sampling


def sample(labels: list[int], count: int, fraction: float, background: int = 0) -> tuple[list[int], list[int]]:
    chosen = d2_module("modeling.sampling").subsample_labels(torch.tensor(labels), count, fraction, background)
    return chosen[0].tolist(), chosen[1].tolist()


def test_sample_is_drawn_positives_first():
    labels = [1, 0, -1, 2, 0, 0, 3, 0, 1, 0]
    positive, negative = torch.tensor([0, 3, 6, 8]), torch.tensor([1, 4, 5, 7, 9])
    torch.manual_seed(5)
    expected = positive[torch.randperm(4)[:2]].tolist(), negative[torch.randperm(5)[:3]].tolist()
    state = torch.get_rng_state()
    torch.manual_seed(5)
    assert sample(labels, 5, 0.5) == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_sample_is_filled_up_with_negatives():
    positive, negative = sample([7, 0, 0, 0, 7, 7, -1], 5, 0.5, background=7)
    assert len(positive) == 2
    assert sorted(negative) == [0, 4, 5]
    positive, negative = sample([1, 0, 0, 0], 4, 0.75)
    assert (positive, sorted(negative)) == ([0], [1, 2, 3])
    assert sample([-1, -1], 4, 0.5) == ([], [])
    positive, negative = sample([1, 1, 1], 4, 0.5)
    assert (len(positive), negative) == (2, [])
