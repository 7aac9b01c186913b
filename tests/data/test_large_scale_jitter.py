"""Large-scale jittering: sizes, scales and boxes."""

from __future__ import annotations

import numpy as np
import pytest

from elsa_det import get_config
from elsa_det.d2 import instantiate
from elsa_det.d2 import transforms as T


def test_the_config_says_what_the_paper_does():
    cfg = get_config("examples/large_scale_jitter")
    assert set(cfg.dataset.image_size) == {"test", "longest", "square", "jitter"}
    flip, scale, crop = instantiate(cfg.dataloader.train.mapper).augmentations.augs
    assert isinstance(flip, T.RandomFlip)
    assert (scale.min_scale, scale.max_scale, scale.target_height, scale.target_width) == (0.1, 2.0, 1024, 1024)
    assert (tuple(crop.crop_size), crop.pad, crop.pad_value) == ((1024, 1024), True, 128.0)
    smaller = get_config(
        "examples/large_scale_jitter", ["dataset.image_size.square=64", "dataset.image_size.jitter=[0.5,1.5]"]
    )
    scale, crop = instantiate(smaller.dataloader.train.mapper).augmentations.augs[1:]
    assert (scale.min_scale, scale.max_scale, scale.target_height, tuple(crop.crop_size)) == (0.5, 1.5, 64, (64, 64))


def test_images_boxes_and_scales():
    cfg = get_config("examples/large_scale_jitter", ["dataset.image_size.square=128"])
    augment = T.AugmentationList(instantiate(cfg.dataloader.train.mapper).augmentations.augs[1:])
    np.random.seed(0)
    scales = []
    for _ in range(300):
        image = np.full((60, 80, 3), 7, np.uint8)
        data = T.AugInput(image)
        transforms = augment(data)
        assert data.image.shape == (128, 128, 3)
        corner = transforms.apply_coords(np.array([[0.0, 0.0], [80.0, 60.0]]))
        width, height = corner[1] - corner[0]
        scales.append(width / 128)  # relative to the size that just fits: 128 wide
        assert height == pytest.approx(width * 0.75, abs=1.01)
        if width < 128:  # put into the upper left corner, padded with grey
            assert tuple(corner[0]) == (0, 0)
            rows, columns = np.nonzero(data.image[:, :, 0] == 7)
            assert (columns.max() + 1, rows.max() + 1) == (round(width), round(height))
            assert (data.image[:, 127] == 128).all()
    assert 0.1 - 0.01 <= min(scales) < 0.2
    assert 1.8 < max(scales) <= 2.0 + 0.01
    assert np.mean(scales) == pytest.approx(1.05, abs=0.1)  # uniform from 0.1 to 2
