"""Augmentations: what they decide for a given seed (recorded from Detectron2), and what transforms do."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from elsa_det.d2 import transforms as T

IMAGE = (np.arange(60 * 80 * 3).reshape(60, 80, 3) % 251).astype(np.uint8)
LABELS = np.kron(np.arange(12).reshape(3, 4) % 3, np.ones((20, 20))).astype(np.uint8)
BOXES = np.array([[10, 10, 40, 40], [30, 20, 70, 55]], np.float32)


def run(augmentation):
    """Apply to the test image with the seed 5; gives the input, the list of transforms and the next random number."""
    np.random.seed(5)
    aug_input = T.AugInput(IMAGE.copy(), boxes=BOXES.copy(), sem_seg=LABELS.copy())
    transform = augmentation(aug_input)
    steps = transform.transforms if isinstance(transform, T.TransformList) else [transform]
    return aug_input, steps, np.random.rand()


# augmentation, attributes of the transforms it decides on, next random number, shape and sum of the image
DECISIONS = {
    "flip": (T.RandomFlip(), [{"width": 80}], 0.870732, (60, 80), 1792653),
    "shortest edge, range": (
        T.ResizeShortestEdge([30, 90], 100),
        [{"h": 60, "w": 80, "new_h": 65, "new_w": 87}],
        0.05518,
        (65, 87),
        2112514,
    ),
    "shortest edge, choice": (
        T.ResizeShortestEdge([30, 50, 60, 90], 100, "choice"),
        [{"new_h": 75, "new_w": 100}],
        0.05518,
        (75, 100),
        2805273,
    ),
    "scale": (T.ResizeScale(0.1, 2.0, 100, 120), [{"new_h": 47, "new_w": 63}], 0.870732, (47, 63), 1106081),
    "fixed size": (
        T.FixedSizeCrop((40, 100)),
        [{"x0": 0, "y0": 4, "w": 100, "h": 40}, {"x1": 20, "y1": 0, "pad_value": 128, "seg_pad_value": 255}],
        0.870732,
        (40, 100),
        1509657,
    ),
    "crop relative": (
        T.RandomCrop("relative", (0.3, 0.7)),
        [{"x0": 14, "y0": 35, "w": 56, "h": 18}],
        0.870732,
        (18, 56),
        387826,
    ),
    "crop relative_range": (
        T.RandomCrop("relative_range", (0.3, 0.7)),
        [{"x0": 1, "y0": 16, "w": 77, "h": 27}],
        0.488411,
        (27, 77),
        785738,
    ),
    "crop absolute": (
        T.RandomCrop("absolute", (40, 400)),
        [{"x0": 0, "y0": 3, "w": 80, "h": 40}],
        0.05518,
        (40, 80),
        1200378,
    ),
    "crop absolute_range": (
        T.RandomCrop("absolute_range", (38, 64)),
        [{"x0": 6, "y0": 15, "w": 52, "h": 41}],
        0.363737,
        (41, 52),
        782854,
    ),
    "crop by class": (
        T.RandomCrop_CategoryAreaConstraint("absolute", (24, 24), 0.5, 0),
        [{"x0": 47, "y0": 1, "w": 24, "h": 24}],
        0.110901,
        (24, 24),
        219247,
    ),
    "brightness": (
        T.RandomBrightness(0.4, 1.7),
        [{"src_image": 0, "src_weight": 0.311409, "dst_weight": 0.688591}],
        0.870732,
        (60, 80),
        1227260,
    ),
    "contrast": (T.RandomContrast(0.4, 1.7), [{"src_image": 124.489792}], 0.870732, (60, 80), 1785417),
    "lighting": (
        T.RandomLighting(9.0),
        [{"src_image": [-0.490947, -0.581522, -0.423783]}],
        0.765908,
        (60, 80),
        1778311,
    ),
    "min IoU": (T.MinIoURandomCrop(), [{"x0": 3, "y0": 13, "w": 63, "h": 35}], 0.861479, (35, 63), 843488),
    "rotation": (
        T.RandomRotation([-30, 30]),
        [{"angle": -16.68041, "bound_w": 94, "bound_h": 80}],
        0.870732,
        (80, 94),
        1792633,
    ),
    "rotation in place": (
        T.RandomRotation([-30, 30], expand=False, center=[[0.2, 0.3], [0.7, 0.8]]),
        [{"angle": -16.68041, "bound_w": 80, "bound_h": 60}],
        0.918611,
        (60, 80),
        1566800,
    ),
    "resize to one of": (
        T.RandomResize([(20, 30), (50, 44), (90, 90)]),
        [{"new_h": 90, "new_w": 90}],
        0.870732,
        (90, 90),
        3030311,
    ),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_decision_for_a_seed(name):
    augmentation, expected, next_random, shape, total = DECISIONS[name]
    aug_input, steps, after = run(augmentation)
    assert len(steps) == len(expected)
    for step, attributes in zip(steps, expected):
        for attribute, value in attributes.items():
            assert np.asarray(getattr(step, attribute), float) == pytest.approx(np.asarray(value, float), abs=1e-6)
    assert after == pytest.approx(next_random, abs=1e-6)
    assert aug_input.image.shape == (*shape, 3)
    assert aug_input.sem_seg.shape == shape
    # libraries for images may round the odd pixel another way
    assert aug_input.image.sum(dtype=np.int64) == pytest.approx(total, rel=1e-4)


def test_list_applies_in_order_to_everything():
    aug_input = T.AugInput(IMAGE.copy(), boxes=BOXES.copy(), sem_seg=LABELS.copy())
    augs = [T.RandomFlip(1.0), T.CropTransform(10, 20, 30, 40), T.Resize((80, 60))]
    transforms = T.AugmentationList(augs)(aug_input)
    assert [type(t).__name__ for t in transforms] == ["HFlipTransform", "CropTransform", "ResizeTransform"]
    assert aug_input.image.shape == (80, 60, 3)
    np.testing.assert_array_equal(aug_input.sem_seg[::2, ::2], LABELS[:, ::-1][20:60, 10:40])
    # x: 80 - x, - 10, · 2;  y: - 20, · 2
    np.testing.assert_array_equal(aug_input.boxes, [[60, -20, 120, 40], [0, 0, 80, 70]])
    image, same = T.apply_augmentations(augs, IMAGE.copy())
    np.testing.assert_array_equal(image, aug_input.image)
    assert len(same) == 3


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((300, 900), 800, 1333, (444, 1333)),
        ((500, 500), 600, 1333, (600, 600)),
        ((1, 1000), 800, 1333, (1, 1333)),
    ],
)
def test_output_shape_of_shortest_edge(size, short, longest, expected):
    assert T.ResizeShortestEdge.get_output_shape(*size, short, longest) == expected


def test_shortest_edge_zero_keeps_the_image():
    assert isinstance(run(T.ResizeShortestEdge(0))[1][0], T.NoOpTransform)


def test_resize_is_pils_for_bytes_and_torchs_for_floats():
    square = np.array([[0, 255], [255, 0]], np.uint8)
    resize = T.ResizeTransform(2, 2, 1, 1)
    assert resize.apply_image(square).tolist() == [[128]]
    assert resize.apply_image(square.astype(np.float32)).tolist() == [[127.5]]
    assert resize.apply_image(square[:, :, None]).shape == (1, 1, 1)
    up = T.ResizeTransform(2, 2, 2, 4, Image.NEAREST)
    assert up.apply_image(square).tolist() == [[0, 0, 255, 255], [255, 255, 0, 0]]
    assert up.apply_coords(np.array([[1.0, 1.0]])).tolist() == [[2.0, 1.0]]
    assert up.inverse().apply_coords(np.array([[2.0, 1.0]])).tolist() == [[1.0, 1.0]]
    with pytest.raises((ValueError, AssertionError)):
        resize.apply_image(IMAGE)


def test_quarter_turn_moves_pixels_and_points_alike():
    turn = T.RotationTransform(3, 2, 90)
    image = np.arange(6, dtype=np.uint8).reshape(3, 2)
    assert turn.apply_image(image).tolist() == np.rot90(image).tolist()
    # The corner (2, 0) of the upright image is the top left corner of the turned one.
    np.testing.assert_allclose(turn.apply_coords(np.array([[2.0, 0.0], [0.0, 0.0]])), [[0, 0], [0, 2]], atol=1e-9)
    back = turn.inverse()
    assert back.apply_image(turn.apply_image(image)).tolist() == image.tolist()


def test_colour_transforms_leave_geometry_alone():
    invert = T.ColorTransform(lambda x: 255 - x)
    assert invert.apply_image(IMAGE)[0, 0].tolist() == [255, 254, 253]
    np.testing.assert_array_equal(invert.apply_segmentation(LABELS), LABELS)
    darken = T.PILColorTransform(lambda image: image.point(lambda v: v // 2))
    np.testing.assert_array_equal(darken.apply_image(IMAGE), IMAGE // 2)
    with pytest.raises(ValueError, match="callable"):
        T.ColorTransform(3)


def test_saturation_zero_is_grey():
    image = run(T.RandomSaturation(0, 0))[0].image
    r, g, b = IMAGE[3, 4].astype(float)
    grey = int(0.299 * r + 0.587 * g + 0.114 * b)
    assert image[3, 4].tolist() == [grey] * 3
    with pytest.raises((ValueError, AssertionError), match="RGB"):
        T.RandomSaturation(0, 1).get_transform(IMAGE[:, :, :1])


def test_random_apply_draws_once_and_asks_the_inner_one():
    class Needy(T.Augmentation):
        def get_transform(self, boxes, sem_seg):
            return T.CropTransform(0, 0, len(boxes), int(sem_seg.max()))

    aug_input, _, after = run(T.RandomApply(Needy(), prob=1.0))
    assert aug_input.image.shape == (2, 2, 3)
    assert after == pytest.approx(0.870732, abs=1e-6)
    assert run(T.RandomApply(Needy(), prob=0.0))[0].image.shape == IMAGE.shape
    with pytest.raises((ValueError, AssertionError)):
        T.RandomApply(Needy(), prob=1.5)


def test_own_augmentations():
    class Missing(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    class Starred(T.Augmentation):
        def get_transform(self, image, *rest):
            return T.NoOpTransform()

    class Wrong(T.Augmentation):
        def get_transform(self, image):
            return image

    class Kept(T.Augmentation):
        def __init__(self, size, mode="a"):
            self._init(locals())

        def get_transform(self, img):
            return T.NoOpTransform()

    with pytest.raises(AttributeError, match="depth"):
        run(Missing())
    with pytest.raises(TypeError, match="args"):
        run(Starred())
    with pytest.raises((TypeError, AssertionError), match="Transform"):
        run(Wrong())
    run(Kept(3))
    assert str(Kept(3)) == "Kept(size=3)"
    both = T.AugmentationList([Kept(3, "b"), T.RandomFlip()])
    assert str(both) == "AugmentationList[Kept(size=3, mode='b'), RandomFlip()]"


@pytest.mark.parametrize(
    "make",
    [
        lambda: T.RandomFlip(horizontal=True, vertical=True),
        lambda: T.RandomFlip(horizontal=False),
        lambda: T.ResizeShortestEdge([1, 2, 3]),
        lambda: T.ResizeShortestEdge([1, 2], sample_style="any"),
        lambda: T.RandomCrop("absolut", (1, 2)),
        lambda: T.RandomRotation(3, sample_style="any"),
        lambda: T.AugmentationList([3]),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises((ValueError, TypeError, AssertionError)):
        make()


def test_crop_cuts_polygons():
    crop = T.CropTransform(1, 1, 2, 2)
    square = np.array([[0.0, 0], [2, 0], [2, 2], [0, 2]])
    (cut,) = crop.apply_polygons([square, square + 10])
    assert sorted(map(tuple, cut.tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1)]
