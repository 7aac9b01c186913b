"""Registering own data, and the augmentations that Detectron2 lacks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from elsa_det.d2 import BoxMode, DatasetCatalog
from elsa_det.d2 import transforms as T
from elsa_det.data import OneOf, RandomTranspose, registered_coco
from elsa_det.data.augmentation import TransposeTransform
from elsa_det.errors import UserError


@pytest.fixture
def coco(tmp_path):
    annotations = {
        "images": [{"id": 4, "file_name": "a.png", "height": 20, "width": 30}],
        "annotations": [{"id": 1, "image_id": 4, "category_id": 9, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}],
        "categories": [{"id": 9, "name": "nut"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    (tmp_path / "images").mkdir()
    return str(tmp_path / "a.json"), str(tmp_path / "images")


def test_own_data_is_registered_once(coco):
    name = registered_coco("ignored", *coco)
    assert registered_coco("ignored", *coco) == name == coco[0]
    (record,) = DatasetCatalog.get(name)
    assert (record["height"], record["width"], record["image_id"]) == (20, 30, 4)
    (annotation,) = record["annotations"]
    assert (annotation["category_id"], annotation["bbox"]) == (0, [1, 2, 3, 4])
    assert annotation["bbox_mode"] == BoxMode.XYWH_ABS


def test_bad_places_are_named(coco, tmp_path):
    with pytest.raises(UserError, match="'nothing' is not registered. Known: .*coco_2017_train"):
        registered_coco("nothing")
    with pytest.raises(ValueError, match="needs both"):
        registered_coco("x", json_file=coco[0])
    with pytest.raises(FileNotFoundError, match=r"json_file=.*gone.json does not exist"):
        registered_coco("x", str(tmp_path / "gone.json"), coco[1])
    with pytest.raises(FileNotFoundError, match=r"image_root=.*gone is not a folder"):
        registered_coco("x", coco[0], str(tmp_path / "gone"))
    registered_coco("x", *coco)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="already registered with image_root"):
        registered_coco("x", coco[0], str(tmp_path / "other"))


def test_one_of_takes_each_choice_with_its_probability():
    one_of = OneOf([[T.Resize((4, 4))], [T.Resize((8, 8)), T.Resize((16, 16))]], probabilities=[0.25, 0.75])
    np.random.seed(0)
    sizes = []
    for _ in range(400):
        augmented = T.AugInput(np.zeros((10, 10, 3), np.uint8))
        one_of(augmented)
        sizes.append(augmented.image.shape[0])
    assert set(sizes) == {4, 16}
    assert sizes.count(4) / 400 == pytest.approx(0.25, abs=0.06)


def test_one_of_checks_its_arguments():
    with pytest.raises(ValueError, match="at least one"):
        OneOf([])
    with pytest.raises(ValueError, match="sum to 1"):
        OneOf([[], []], probabilities=[0.5, 0.6])


def test_transpose_moves_pixels_boxes_and_points_together():
    transform = TransposeTransform()
    image = np.arange(24).reshape(4, 6)
    assert transform.apply_image(image)[5, 1] == image[1, 5]
    np.testing.assert_array_equal(transform.apply_box(np.array([[1, 2, 3, 7]])), [[2, 1, 7, 3]])
    np.testing.assert_array_equal(transform.apply_coords(np.array([[1.0, 2.0]])), [[2.0, 1.0]])
    np.testing.assert_array_equal(transform.inverse().apply_image(transform.apply_image(image)), image)


def test_random_transpose_probability():
    np.random.seed(1)
    kinds = [type(RandomTranspose(0.3).get_transform(np.zeros((2, 2)))) for _ in range(500)]
    assert kinds.count(TransposeTransform) / 500 == pytest.approx(0.3, abs=0.06)
