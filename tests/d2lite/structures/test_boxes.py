from __future__ import annotations

import numpy as np
import pytest
import torch
from d2_access import d2_module

from elsa_det.d2 import Boxes, BoxMode

XYXY, XYWH = BoxMode.XYXY_ABS, BoxMode.XYWH_ABS


def test_box_modes_have_the_numbers_saved_in_datasets():
    assert {mode.name: int(mode) for mode in BoxMode} == {
        "XYXY_ABS": 0,
        "XYWH_ABS": 1,
        "XYXY_REL": 2,
        "XYWH_REL": 3,
        "XYWHA_ABS": 4,
    }


@pytest.mark.parametrize("kind", [list, tuple])
def test_convert_keeps_lists_and_tuples(kind):
    assert BoxMode.convert(kind([1, 2, 30, 40]), XYWH, XYXY) == kind([1, 2, 31, 42])
    assert BoxMode.convert(kind([1.5, 2.0, 31.0, 42.0]), XYXY, XYWH) == kind([1.5, 2.0, 29.5, 40.0])


def test_convert_rounds_fractions_of_a_list_to_float32_but_not_those_of_an_array():
    assert BoxMode.convert([0.1, 0.0, 0.2, 1.0], XYWH, XYXY)[2] == float(np.float32(0.1) + np.float32(0.2))
    assert BoxMode.convert(np.array([[0.1, 0.0, 0.2, 1.0]]), XYWH, XYXY)[0, 2] == 0.1 + 0.2


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_convert_keeps_arrays_and_leaves_the_input_alone(dtype):
    boxes = np.array([[1, 2, 3, 4], [0, 0, 5, 6]], dtype=dtype)
    converted = BoxMode.convert(boxes, XYWH, XYXY)
    assert converted.dtype == dtype
    assert converted.tolist() == [[1, 2, 4, 6], [0, 0, 5, 6]]
    assert boxes.tolist() == [[1, 2, 3, 4], [0, 0, 5, 6]]
    assert BoxMode.convert(converted, XYXY, XYWH).tolist() == boxes.tolist()


def test_convert_tensors():
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert BoxMode.convert(boxes, XYWH, XYXY).tolist() == [[1.0, 2.0, 4.0, 6.0]]
    assert BoxMode.convert(boxes, XYWH, XYWH) is boxes
    assert BoxMode.convert(torch.zeros(0, 4), XYWH, XYXY).shape == (0, 4)


def test_convert_refuses_relative_modes():
    with pytest.raises((NotImplementedError, AssertionError)):
        BoxMode.convert([0.0, 0.0, 1.0, 1.0], BoxMode.XYXY_REL, XYXY)


def test_convert_refuses_three_numbers():
    with pytest.raises((ValueError, AssertionError)):
        BoxMode.convert([0.0, 0.0, 1.0], XYWH, XYXY)


@pytest.mark.parametrize("empty", [[], torch.zeros(0), torch.zeros(0, 4), np.zeros((0, 4))])
def test_no_boxes(empty):
    boxes = Boxes(empty)
    assert boxes.tensor.shape == (0, 4)
    assert boxes.tensor.dtype == torch.float32
    assert len(boxes) == 0
    assert boxes.area().shape == (0,)
    assert boxes.nonempty().shape == (0,)


@pytest.mark.parametrize("shape", [(4,), (3, 5), (1, 2, 4)])
def test_boxes_of_another_shape_are_refused(shape):
    with pytest.raises((ValueError, AssertionError)):
        Boxes(torch.ones(shape))


def test_boxes_are_float32():
    assert Boxes(torch.ones(2, 4, dtype=torch.float64)).tensor.dtype == torch.float32
    assert Boxes(np.ones((2, 4))).tensor.dtype == torch.float32
    assert Boxes([[1, 2, 3, 4]]).tensor.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_area_centres_and_emptiness():
    boxes = Boxes([[0, 0, 10, 5], [2, 2, 2, 9], [4, 1, 3, 3], [1, 1, 1.5, 4]])
    assert boxes.area().tolist() == [50.0, 0.0, -2.0, 1.5]
    assert boxes.get_centers().tolist() == [[5.0, 2.5], [2.0, 5.5], [3.5, 2.0], [1.25, 2.5]]
    assert boxes.nonempty().tolist() == [True, False, False, True]
    assert boxes.nonempty(threshold=0.5).tolist() == [True, False, False, False]


def test_clip_cuts_to_height_and_width():
    boxes = Boxes([[-3, -4, 100, 200], [5, 6, 7, 8], [60, 70, 80, 90]])
    boxes.clip((20, 30))
    assert boxes.tensor.tolist() == [[0, 0, 30, 20], [5, 6, 7, 8], [30, 20, 30, 20]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_clip_refuses_what_is_not_finite(bad):
    with pytest.raises((ValueError, AssertionError), match="infinite or NaN"):
        Boxes([[0, 0, bad, 1]]).clip((5, 5))


def test_inside_box():
    boxes = Boxes([[0, 0, 9.5, 9.5], [0, 0, 10, 9], [-1, 0, 5, 5], [-3, 0, 5, 5]])
    assert boxes.inside_box((10, 10)).tolist() == [True, False, False, False]
    assert boxes.inside_box((10, 10), boundary_threshold=2).tolist() == [True, True, True, False]


def test_scale_is_in_place():
    boxes = Boxes([[1, 2, 3, 4]])
    boxes.scale(2.0, 0.5)
    assert boxes.tensor.tolist() == [[2.0, 1.0, 6.0, 2.0]]


def test_indexing_iterating_and_concatenating():
    boxes = Boxes([[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]])
    assert boxes[1].tensor.tolist() == [[0, 0, 2, 2]]
    assert boxes[-1].tensor.tolist() == [[0, 0, 3, 3]]
    assert boxes[1:].area().tolist() == [4, 9]
    assert boxes[torch.tensor([True, False, True])].area().tolist() == [1, 9]
    assert boxes[torch.tensor([2, 2, 0])].area().tolist() == [9, 9, 1]
    assert [box.tolist() for box in boxes] == boxes.tensor.tolist()
    assert Boxes.cat([boxes, boxes[:1]]).area().tolist() == [1, 4, 9, 1]
    assert Boxes.cat([]).tensor.shape == (0, 4)
    alone = Boxes.cat([boxes])
    alone.scale(0, 0)
    assert boxes.area().tolist() == [1, 4, 9]
    with pytest.raises((ValueError, AssertionError)):
        boxes[torch.tensor(1)]


def test_clone_and_to():
    boxes = Boxes([[0, 0, 1, 1]])
    copy = boxes.clone()
    copy.scale(5, 5)
    assert boxes.area().item() == 1
    assert boxes.to(torch.device("cpu")).device == torch.device("cpu")


def test_overlaps_by_hand():
    module = d2_module("structures.boxes")
    first = Boxes([[0, 0, 10, 10], [0, 0, 0, 0]])
    second = Boxes([[0, 0, 10, 10], [5, 5, 15, 10], [10, 10, 20, 20], [2, 2, 2, 2]])
    assert module.pairwise_intersection(first, second).tolist() == [[100, 25, 0, 0], [0, 0, 0, 0]]
    iou = module.pairwise_iou(first, second)
    ioa = module.pairwise_ioa(first, second)
    assert torch.allclose(iou, torch.tensor([[1.0, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert torch.allclose(ioa, torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert module.pairwise_iou(Boxes([]), second).shape == (0, 4)
    assert module.pairwise_ioa(first, Boxes([])).shape == (2, 0)
