"""The augmentation of the segmentation recipes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from elsa_det.d2 import transforms as T
from elsa_det.data import PadToSize, PhotometricDistortion, RandomResizeInto
from elsa_det.data.semantic.augmentation import LabelResize, PhotometricTransform, size_into
from elsa_det.errors import UserError


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 683), (512, 683)),  # the short side is 512 already
        ((300, 400), (512, 683)),
        ((1024, 2048), (512, 1024)),
        ((100, 1000), (205, 2048)),  # the long side meets the frame first
        ((2000, 300), (2048, 307)),
    ],
)
def test_frame_of_the_recipe(size, expected):
    assert size_into(*size, short=512, long=2048) == expected
    # and Detectron2's resize, which the recipe uses in testing, agrees
    image = np.zeros((*size, 3), np.uint8)
    assert T.ResizeShortestEdge(512, 2048).get_transform(image).apply_image(image).shape[:2] == expected


def test_resize_takes_factors_of_its_range():
    np.random.seed(0)
    augmentation = RandomResizeInto(512, 2048, (0.5, 2.0))
    heights = [augmentation.get_transform(np.zeros((300, 400, 3), np.uint8)).new_h for _ in range(400)]
    assert (min(heights), max(heights)) == (pytest.approx(256, abs=8), pytest.approx(1024, abs=8))
    assert np.mean(heights) == pytest.approx(512 * 1.25, rel=0.05)
    with pytest.raises(UserError, match="short=512, long=100"):
        RandomResizeInto(512, 100)
    with pytest.raises(UserError, match=r"ratio is a range .* got \[2.0, 0.5\]"):
        RandomResizeInto(512, 2048, [2.0, 0.5])


def test_labels_of_more_bits_are_sampled_at_the_same_places():
    labels = np.random.default_rng(0).integers(0, 200, (31, 45))
    resize = LabelResize(31, 45, 50, 33)
    small, large = (resize.apply_segmentation(labels.astype(dtype)) for dtype in (np.uint8, np.int32))
    np.testing.assert_array_equal(small, large)
    np.testing.assert_array_equal(resize.apply_segmentation((labels + 1000).astype(np.int32)), small + np.int32(1000))
    assert large.dtype == np.int32


def test_crop_with_the_share_of_a_class():
    """At most three quarters of a crop are one class, ignored pixels aside, if ten tries find such a place."""
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 40:] = 1
    labels[:20] = 255
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (32, 32), 0.75, 255)
    np.random.seed(3)
    kept, single = 0, 0
    for _ in range(200):
        given = T.AugInput(noise(64, 64), sem_seg=labels)
        crop(given)
        assert given.image.shape[:2] == given.sem_seg.shape == (32, 32)
        counts = np.unique(given.sem_seg[given.sem_seg != 255], return_counts=True)[1]
        kept += len(counts) > 1 and counts.max() < 0.75 * counts.sum()
        single += len(counts) == 1
    assert kept >= 198
    assert single <= 2


def test_small_images_are_padded_with_the_mean_and_ignored_labels():
    image, labels = noise(5, 7), np.ones((5, 7), np.uint8)
    given = T.AugInput(image, sem_seg=labels)
    T.AugmentationList(
        [
            T.RandomCrop_CategoryAreaConstraint("absolute", (8, 6), 0.75, 255),
            PadToSize((8, 6), pixel=(123.675, 116.28, 103.53), label=255),
        ]
    )(given)
    assert given.image.shape == (8, 6, 3)
    assert (given.image[5:] == [124, 116, 104]).all()
    assert (given.sem_seg[5:] == 255).all()
    assert (given.sem_seg[:5] == 1).all()
    # nearly 0 for the model, as published: within rounding of the mean
    normalised = (given.image[5:] - np.array([123.675, 116.28, 103.53])) / [58.395, 57.12, 57.375]
    assert np.abs(normalised).max() < 0.5 / 57.12
    assert given.image.dtype == np.uint8


def test_padding_of_other_kinds_of_arrays():
    pad = PadToSize((3, 3), pixel=(10.4, 20.0, 30.0), label=7)
    assert isinstance(pad.get_transform(noise(3, 4)), T.NoOpTransform)
    transform = pad.get_transform(noise(2, 3))
    assert transform.apply_image(np.zeros((2, 3, 3), np.float32))[2, 0, 0] == pytest.approx(10.4)
    assert transform.apply_image(np.zeros((2, 3), np.uint8))[2, 0] == 20
    assert transform.apply_segmentation(np.zeros((2, 3), np.int32))[2].tolist() == [7, 7, 7]
    np.testing.assert_array_equal(transform.apply_coords(np.array([[1.0, 2.0]])), [[1, 2]])
    with pytest.raises(ValueError, match="1 channels, the padding 3 values"):
        transform.apply_image(np.zeros((2, 3, 1), np.uint8))


class TestPhotometric:
    def test_steps_by_hand(self):
        image = noise(6, 5)
        as_float = image.astype(np.float64)
        brighter = PhotometricTransform(offset=20.7).apply_image(image)
        np.testing.assert_array_equal(brighter, np.clip(as_float + 20.7, 0, 255).astype(np.uint8))
        contrast = PhotometricTransform(contrast=1.5).apply_image(image)
        np.testing.assert_array_equal(contrast, np.minimum(image.astype(int) * 3 // 2, 255))
        hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)).astype(int)
        hsv[..., 0] = (hsv[..., 0] - 18) % 180
        turned = PhotometricTransform(hue=-18).apply_image(image)
        np.testing.assert_array_equal(turned, cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB))

    def test_grey_has_no_saturation(self):
        grey = np.repeat(noise(4, 4)[:, :, :1], 3, axis=2)
        np.testing.assert_array_equal(PhotometricTransform(saturation=1.4, hue=9).apply_image(grey), grey)

    def test_order_of_channels(self):
        image = noise(5, 5)
        rgb = PhotometricTransform(saturation=0.6, hue=12).apply_image(image)
        bgr = PhotometricTransform(saturation=0.6, hue=12, image_format="BGR").apply_image(image[:, :, ::-1])
        np.testing.assert_array_equal(rgb, bgr[:, :, ::-1])

    def test_order_of_contrast(self):
        # contrast first: (255, 150, 255), saturation 105 → 52, so 255 - 52; last: saturation 127 → 63, 151 · 1.5
        image = np.full((1, 1, 3), 200, np.uint8)
        image[0, 0, 1] = 100
        first = PhotometricTransform(contrast=1.5, saturation=0.5, contrast_first=True).apply_image(image)
        last = PhotometricTransform(contrast=1.5, saturation=0.5, contrast_first=False).apply_image(image)
        assert (first[0, 0].tolist(), last[0, 0].tolist()) == ([255, 203, 255], [255, 226, 255])

    def test_draws(self):
        np.random.seed(0)
        drawn = [PhotometricDistortion().get_transform(noise(1, 1)) for _ in range(2000)]
        for name, low, high in (
            ("offset", -32, 32),
            ("contrast", 0.5, 1.5),
            ("saturation", 0.5, 1.5),
            ("hue", -18, 17),
        ):
            values = [value for t in drawn if (value := getattr(t, name)) is not None]
            assert len(values) / 2000 == pytest.approx(0.5, abs=0.04), name
            assert low <= min(values) < low + 0.05 * (high - low), name
            assert high - 0.05 * (high - low) < max(values) <= high, name
        assert np.mean([t.contrast_first for t in drawn]) == pytest.approx(0.5, abs=0.04)

    def test_labels_and_places_stay(self):
        given = T.AugInput(noise(4, 4), sem_seg=np.arange(16, dtype=np.uint8).reshape(4, 4))
        np.random.seed(1)
        T.AugmentationList([PhotometricDistortion()])(given)
        np.testing.assert_array_equal(given.sem_seg, np.arange(16).reshape(4, 4))

    def test_mistakes(self):
        with pytest.raises(UserError, match="image_format='L'"):
            PhotometricDistortion(image_format="L")
        with pytest.raises(UserError, match="contrast is a range"):
            PhotometricDistortion(contrast=(1.5, 0.5))
        with pytest.raises(UserError, match="hue=100"):
            PhotometricDistortion(hue=100)
        with pytest.raises(ValueError, match="uint8"):
            PhotometricTransform(offset=1).apply_image(np.zeros((2, 2, 3)))


def test_an_image_of_one_size_keeps_it():
    image = noise(20, 30)
    resize = RandomResizeInto(20, 100, (1.0, 1.0)).get_transform(image)
    np.testing.assert_array_equal(resize.apply_image(image), np.asarray(Image.fromarray(image)))
