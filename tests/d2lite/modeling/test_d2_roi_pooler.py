"""Which level a box goes to, and what is pooled there."""

from __future__ import annotations

import pytest
import torch
from d2_access import d2_module

from elsa_det import d2


def squares(*sides: float) -> d2.Boxes:
    return d2.Boxes(torch.tensor([[0.0, 0.0, side, side] for side in sides]).reshape(-1, 4))


def test_levels_by_size():
    assign = d2_module("modeling.poolers").assign_boxes_to_levels
    levels = assign([squares(1, 111, 112, 223.9), squares(224, 447, 448, 4000)], 2, 5, 224, 4)
    assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert levels.dtype == torch.int64


def test_pooler_format():
    convert = d2_module("modeling.poolers").convert_boxes_to_pooler_format
    rois = convert([squares(2, 3), squares(), squares(4)])
    assert rois.tolist() == [[0, 0, 0, 2, 2], [0, 0, 0, 3, 3], [2, 0, 0, 4, 4]]


def make(pooler_type: str = "ROIAlignV2", scales=(1 / 4, 1 / 8, 1 / 16, 1 / 32), output_size=2) -> d2.ROIPooler:
    return d2.ROIPooler(output_size=output_size, scales=scales, sampling_ratio=0, pooler_type=pooler_type)


def test_each_box_is_pooled_at_its_level_of_its_image():
    features = [torch.full((2, 3, 128 // 2**k, 128 // 2**k), float(k)) for k in range(4)]
    for feature in features:
        feature[1] += 10
    pooled = make()(features, [squares(500, 50), squares(120, 230, 60)])
    assert pooled.shape == (5, 3, 2, 2)
    torch.testing.assert_close(pooled.mean(dim=(1, 2, 3)), torch.tensor([3.0, 0.0, 11.0, 12.0, 10.0]))


@pytest.mark.parametrize(
    ("pooler_type", "expected"), [("ROIAlignV2", [1.5, 5.5]), ("ROIAlign", [2.0, 6.0]), ("ROIPool", [4.0, 8.0])]
)
def test_pooling_a_ramp(pooler_type, expected):
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    pooled = make(pooler_type, scales=(1 / 2,))([ramp], [squares(16)])
    torch.testing.assert_close(pooled[0, 0, 0], torch.tensor(expected))


def test_nothing_to_pool():
    features = [torch.zeros(2, 3, 8 // 2**k, 8 // 2**k) for k in range(4)]
    assert make()(features, [squares(), squares()]).shape == (0, 3, 2, 2)
    assert make(scales=(1 / 4,))(features[:1], [squares(), squares()]).shape == (0, 3, 2, 2)
    assert make()([feature[:0] for feature in features], []).shape == (0, 3, 2, 2)


@pytest.mark.parametrize("scales", [(1 / 3,), (1 / 4, 1 / 16), (1 / 8, 1 / 4)])
def test_scales_must_be_a_pyramid(scales):
    with pytest.raises((AssertionError, ValueError)):
        make(scales=scales)


def test_unknown_pooler():
    with pytest.raises(ValueError, match="ROIMagic"):
        make("ROIMagic")


def test_wrong_number_of_features_or_images():
    features = [torch.zeros(2, 3, 8 // 2**k, 8 // 2**k) for k in range(4)]
    with pytest.raises((AssertionError, ValueError)):
        make()(features[:3], [squares(1), squares(1)])
    with pytest.raises((AssertionError, ValueError)):
        make()(features, [squares(1)])
