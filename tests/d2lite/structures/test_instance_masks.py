from __future__ import annotations

import numpy as np
import pytest
import torch
from d2_access import d2_module

from elsa_det.d2 import BitMasks, PolygonMasks


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([x0, y0, x1, y0, x1, y1, x0, y1], dtype=np.float64)


def _filled(height: int, width: int, rows: slice, columns: slice) -> torch.Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


def test_polygons_to_bitmask():
    draw = d2_module("structures").polygons_to_bitmask
    mask = draw([_rectangle(1, 2, 4, 5), _rectangle(6, 0, 8, 1)], 6, 9)
    wanted = _filled(6, 9, slice(2, 5), slice(1, 4)) | _filled(6, 9, slice(0, 1), slice(6, 8))
    assert mask.dtype == bool
    assert mask.tolist() == wanted.tolist()
    assert draw([], 3, 4).tolist() == np.zeros((3, 4), dtype=bool).tolist()


def test_rasterize_within_a_box_moves_and_zooms():
    rasterize = d2_module("structures.masks").rasterize_polygons_within_box
    polygon = _rectangle(10, 20, 12, 24)
    mask = rasterize([polygon], np.array([10, 20, 14, 28], dtype=np.float32), 8)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, _filled(8, 8, slice(0, 4), slice(0, 4)))
    assert polygon.tolist() == _rectangle(10, 20, 12, 24).tolist()
    assert rasterize([polygon], np.array([11, 21, 11, 21], dtype=np.float32), 4).shape == (4, 4)


def test_polygon_masks_check_their_input():
    for bad in ("polygons", [np.zeros(6)], [[np.zeros(4)]], [[np.zeros(7)]]):
        with pytest.raises(ValueError, match=r"PolygonMasks|polygon"):
            PolygonMasks(bad)
    masks = PolygonMasks([[[0, 0, 1, 0, 1, 1]], [torch.ones(8)]])
    assert len(masks) == 2
    assert masks.polygons[0][0].dtype == np.float64
    assert masks.to("anywhere") is masks
    assert masks.device == torch.device("cpu")


def test_polygon_boxes_areas_and_emptiness():
    masks = PolygonMasks([[_rectangle(1, 2, 4, 6), _rectangle(0, 3, 2, 9)], [], [_rectangle(-5, -4, -2, -1)]])
    inf = float("inf")
    assert masks.get_bounding_boxes().tensor.tolist() == [[0, 2, 4, 9], [inf, inf, 0, 0], [-5, -4, 0, 0]]
    assert masks.nonempty().tolist() == [True, False, True]
    assert masks.area().tolist() == [24.0, 0.0, 9.0]
    empty = PolygonMasks([])
    assert empty.get_bounding_boxes().tensor.shape == (0, 4)
    assert empty.nonempty().shape == (0,)
    assert empty.crop_and_resize(torch.zeros(0, 4), 7).shape == (0, 7, 7)


@pytest.mark.parametrize(
    ("index", "chosen"),
    [
        (1, [1]),
        (-1, [2]),
        (slice(0, 2), [0, 1]),
        ([2, 0], [2, 0]),
        (torch.tensor([1, 1]), [1, 1]),
        (torch.tensor([True, False, True]), [0, 2]),
        (torch.zeros(3, dtype=torch.bool), []),
    ],
)
def test_indexing_masks(index, chosen):
    polygons = PolygonMasks([[_rectangle(0, 0, i + 1, 1)] for i in range(3)])
    assert polygons[index].area().tolist() == [i + 1.0 for i in chosen]
    bitmaps = BitMasks.from_polygon_masks(polygons, 2, 4)
    assert bitmaps[index].tensor.sum(dim=(1, 2)).tolist() == [i + 1 for i in chosen]


def test_polygon_masks_refuse_float_indices():
    with pytest.raises(ValueError, match="float"):
        PolygonMasks([[_rectangle(0, 0, 1, 1)]])[torch.tensor([0.0])]


def test_both_masks_crop_alike():
    instances = [[_rectangle(2, 2, 10, 10)], [_rectangle(0, 0, 4, 16)]]
    boxes = torch.tensor([[2.0, 2.0, 10.0, 10.0], [0.0, 0.0, 8.0, 16.0]])
    wanted = torch.stack([_filled(4, 4, slice(0, 4), slice(0, 4)), _filled(4, 4, slice(0, 4), slice(0, 2))])
    polygons = PolygonMasks(instances)
    for masks in (polygons, BitMasks.from_polygon_masks(polygons, 16, 16)):
        cropped = masks.crop_and_resize(boxes, 4)
        assert cropped.dtype == torch.bool
        assert torch.equal(cropped, wanted)
        with pytest.raises((ValueError, AssertionError)):
            masks.crop_and_resize(boxes[:1], 4)


def test_bitmask_crop_samples_at_half_pixels():
    mask = BitMasks(_filled(4, 4, slice(1, 3), slice(0, 2))[None])
    assert mask.crop_and_resize(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), 2).int().tolist() == [[[1, 0], [1, 0]]]
    assert mask[:0].crop_and_resize(torch.zeros(0, 4), 2).shape == (0, 2, 2)


def test_bitmask_boxes_and_emptiness():
    masks = BitMasks(
        torch.stack([_filled(5, 6, slice(1, 3), slice(2, 6)), torch.zeros(5, 6), torch.ones(5, 6)]).numpy()
    )
    assert tuple(masks.image_size) == (5, 6)
    assert masks.get_bounding_boxes().tensor.tolist() == [[2, 1, 6, 3], [0, 0, 0, 0], [0, 0, 6, 5]]
    assert masks.nonempty().tolist() == [True, False, True]
    assert [int(mask.sum()) for mask in masks] == [8, 0, 30]
    assert masks[:0].get_bounding_boxes().tensor.shape == (0, 4)
    assert masks.to("cpu").device == torch.device("cpu")
    with pytest.raises((ValueError, AssertionError)):
        BitMasks(torch.ones(5, 6))


def test_masks_from_no_polygons():
    assert BitMasks.from_polygon_masks([], 3, 4).tensor.shape == (0, 3, 4)
    assert BitMasks.from_polygon_masks([[]], 3, 4).tensor.sum() == 0


def test_concatenating_masks():
    polygons = PolygonMasks([[_rectangle(0, 0, 2, 3)]])
    assert PolygonMasks.cat([polygons, polygons]).area().tolist() == [6.0, 6.0]
    bitmaps = BitMasks(torch.ones(1, 2, 2))
    assert BitMasks.cat([bitmaps, bitmaps[:0], bitmaps]).tensor.shape == (2, 2, 2)
    assert repr(bitmaps) == "BitMasks(num_instances=1)"
    assert repr(polygons) == "PolygonMasks(num_instances=1)"
