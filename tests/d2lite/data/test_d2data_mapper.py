"""Images read, annotations transformed, and the two put together for a model."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from elsa_det import d2
from elsa_det.d2 import BoxMode, DatasetMapper, MetadataCatalog
from elsa_det.d2 import detection_utils as utils
from elsa_det.d2 import transforms as T

lite_only = pytest.mark.skipif(d2.PROVIDER == d2.UPSTREAM, reason="behaviour of d2lite")

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
SQUARE = [1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    return str(path)


def sample(file_name, **objects):
    obj = {"bbox": [1, 1, 2, 2], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 3, "iscrowd": 0}
    annotations = [{**obj, "segmentation": [list(SQUARE)]}, {**obj, "iscrowd": 1}]
    return {"file_name": file_name, "height": 4, "width": 6, "image_id": 1, "annotations": annotations, **objects}


def test_read_image_formats(image):
    np.testing.assert_array_equal(utils.read_image(image, "RGB"), PIXELS)
    np.testing.assert_array_equal(utils.read_image(image, "BGR"), PIXELS[:, :, ::-1])
    np.testing.assert_array_equal(utils.read_image(image), PIXELS)
    assert utils.read_image(image, "L").shape == (4, 6, 1)
    yuv = utils.read_image(image, "YUV-BT.601")
    assert yuv[0, 1, 0] == pytest.approx((0.299 * 3 + 0.587 * 4 + 0.114 * 5) / 255)
    for format in ("RGB", "BGR", "YUV-BT.601"):
        rgb = utils.convert_image_to_rgb(utils.read_image(image, format), format)
        np.testing.assert_allclose(rgb, PIXELS, atol=0.01)
    grey = utils.convert_image_to_rgb(torch.from_numpy(utils.read_image(image, "L").copy()), "L")
    assert grey.shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, PIXELS),
        (2, PIXELS[:, ::-1]),
        (3, PIXELS[::-1, ::-1]),
        (4, PIXELS[::-1]),
        (5, PIXELS.transpose(1, 0, 2)),
        (6, np.rot90(PIXELS, -1)),
        (7, PIXELS[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(PIXELS)),
        (77, PIXELS),
    ],
)
def test_images_are_turned_upright(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(utils.read_image(str(tmp_path / "turned.png"), "RGB"), upright)


def test_missing_image_names_dataset_and_remedy(tmp_path):
    MetadataCatalog.get("lost_images").set(image_root=str(tmp_path / "photos"))
    try:
        with pytest.raises(FileNotFoundError, match=r"gone\.jpg") as caught:
            utils.read_image(str(tmp_path / "photos" / "gone.jpg"), "BGR")
        if d2.PROVIDER == d2.LITE:
            assert "dataset lost_images" in str(caught.value)
            assert "DETECTRON2_DATASETS" in str(caught.value)
            assert "nor does the folder" in str(caught.value)
    finally:
        MetadataCatalog.remove("lost_images")


def test_damaged_image_is_named(tmp_path, image):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(OSError, match=r"text\.jpg"):
        utils.read_image(str(tmp_path / "text.jpg"), "RGB")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    with pytest.raises(OSError, match="truncated"):
        utils.read_image(str(tmp_path / "half.jpg"), "RGB")


def test_image_size_is_checked_and_filled_in():
    record = {"file_name": "x.png", "width": 6, "height": 4}
    utils.check_image_size(record, PIXELS)
    for wrong in ({"width": 4, "height": 6}, {"width": 6, "height": 5}):
        with pytest.raises(utils.SizeMismatchError, match=r"x\.png"):
            utils.check_image_size({"file_name": "x.png", **wrong}, PIXELS)
    empty = {}
    utils.check_image_size(empty, PIXELS)
    assert empty == {"width": 6, "height": 4}


def test_boxes_and_polygons_are_transformed():
    annotation = sample("x")["annotations"][0]
    transforms = T.TransformList([T.HFlipTransform(6), T.ResizeTransform(4, 6, 8, 6)])
    out = utils.transform_instance_annotations(annotation, transforms, (8, 6))
    assert out is annotation
    assert out["bbox"].tolist() == [3, 2, 5, 6]
    assert out["bbox_mode"] == BoxMode.XYXY_ABS
    assert out["segmentation"][0].tolist() == [5, 2, 3, 2, 3, 6, 5, 6]
    outside = {"bbox": [-2, 1, 5, 9], "bbox_mode": BoxMode.XYXY_ABS}
    assert utils.transform_instance_annotations(outside, [T.NoOpTransform()], (4, 3))["bbox"].tolist() == [0, 1, 3, 4]


def test_rle_becomes_a_mask():
    mask = np.zeros((4, 6), np.uint8, order="F")
    mask[1:3, 1:3] = 1
    rle = mask_util.encode(mask)
    annotation = {"bbox": [1, 1, 3, 3], "bbox_mode": BoxMode.XYXY_ABS, "segmentation": rle}
    out = utils.transform_instance_annotations(annotation, [T.HFlipTransform(6)], (4, 6))
    np.testing.assert_array_equal(out["segmentation"], mask[:, ::-1])
    with pytest.raises((ValueError, AssertionError)):
        utils.transform_instance_annotations({**annotation, "segmentation": rle}, [T.NoOpTransform()], (4, 5))
    with pytest.raises(ValueError, match="str"):
        utils.transform_instance_annotations({**annotation, "segmentation": "1 2"}, [T.NoOpTransform()], (4, 6))


def objects(*segmentations):
    common = {"bbox": [1, 1, 3, 3], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 2}
    return [{**common, "segmentation": s} for s in segmentations]


def test_instances():
    instances = utils.annotations_to_instances(objects([SQUARE], [SQUARE]), (4, 6))
    assert instances.gt_boxes.tensor.tolist() == [[1, 1, 3, 3]] * 2
    assert instances.gt_classes.tolist() == [2, 2]
    assert instances.gt_masks.polygons[0][0].tolist() == SQUARE

    mask = np.zeros((4, 6), np.uint8, order="F")
    mask[1:3, 1:3] = 1
    kinds = objects([SQUARE], mask_util.encode(mask), mask)
    bitmasks = utils.annotations_to_instances(kinds, (4, 6), mask_format="bitmask").gt_masks.tensor
    assert bitmasks.dtype == torch.bool
    for bitmask in bitmasks:
        np.testing.assert_array_equal(bitmask, mask)

    empty = utils.annotations_to_instances([], (4, 6))
    assert len(empty) == 0
    assert empty.gt_boxes.tensor.shape == (0, 4)
    assert empty.gt_classes.dtype == torch.int64
    assert not empty.has("gt_masks")


def test_masks_that_do_not_fit():
    with pytest.raises(ValueError, match="polygon"):
        utils.annotations_to_instances(objects({"size": [4, 6], "counts": b"7"}), (4, 6))
    with pytest.raises(ValueError, match="str"):
        utils.annotations_to_instances(objects("abc"), (4, 6), mask_format="bitmask")
    with pytest.raises((ValueError, AssertionError)):
        utils.annotations_to_instances(objects([SQUARE]), (4, 6), mask_format="mask")
    some = objects([SQUARE], [SQUARE])
    del some[1]["segmentation"]
    with pytest.raises((ValueError, KeyError), match="segmentation"):
        utils.annotations_to_instances(some, (4, 6))


def test_empty_objects_are_dropped():
    annos = objects([SQUARE], [SQUARE], [])
    annos[1]["bbox"] = [2, 2, 2, 3]
    instances = utils.annotations_to_instances(annos, (4, 6))
    kept, mask = utils.filter_empty_instances(instances, return_mask=True)
    assert mask.tolist() == [True, False, False]
    assert len(kept) == 1
    assert len(utils.filter_empty_instances(instances, by_mask=False)) == 2
    assert len(utils.filter_empty_instances(instances, by_box=False)) == 2


def test_mapper_for_training(image):
    record = sample(image)
    mapper = DatasetMapper(True, augmentations=[T.RandomFlip(1.0)], image_format="BGR", use_instance_mask=True)
    out = mapper(record)
    assert len(record["annotations"]) == 2, "the dataset must stay as it is"
    assert record["annotations"][0]["segmentation"] == [SQUARE]
    np.testing.assert_array_equal(out["image"].numpy(), PIXELS[:, ::-1, ::-1].transpose(2, 0, 1))
    assert out["image"].dtype == torch.uint8
    assert (out["height"], out["width"], out["image_id"]) == (4, 6, 1)
    assert "annotations" not in out
    instances = out["instances"]
    assert instances.image_size == (4, 6)
    assert len(instances) == 1, "crowds are left out"
    assert instances.gt_boxes.tensor.tolist() == [[3, 1, 5, 3]]
    assert instances.gt_classes.tolist() == [3]


def test_mapper_without_masks_and_for_inference(image):
    boxes_only = DatasetMapper(True, augmentations=[], image_format="RGB")(sample(image))["instances"]
    assert sorted(boxes_only.get_fields()) == ["gt_boxes", "gt_classes"]
    test = DatasetMapper(False, augmentations=[T.Resize((8, 12))], image_format="RGB")(sample(image))
    assert test["image"].shape == (3, 8, 12)
    assert (test["height"], test["width"]) == (4, 6), "the original size, to which results are scaled back"
    assert "annotations" not in test
    assert "instances" not in test


def test_mapper_boxes_from_cropped_masks(image):
    record = sample(image)
    record["annotations"][0].update(bbox=[0, 0, 4, 4], segmentation=[[0.0, 0, 4, 0, 0, 4]])
    crop = T.CropTransform(2, 0, 4, 4)  # of the triangle, the part right of x = 2 is 2 × 2
    options = {"augmentations": [crop], "image_format": "RGB", "use_instance_mask": True}
    loose = DatasetMapper(True, **options)(record)["instances"]
    tight = DatasetMapper(True, **options, recompute_boxes=True)(record)["instances"]
    assert loose.gt_boxes.tensor.tolist() == [[0, 0, 2, 4]]
    assert tight.gt_boxes.tensor.tolist() == [[0, 0, 2, 2]]


@lite_only
def test_mapper_recompute_boxes_of_no_objects(image):
    options = {"image_format": "RGB", "use_instance_mask": True, "recompute_boxes": True}
    out = DatasetMapper(True, augmentations=[], **options)(sample(image, annotations=[]))
    assert len(out["instances"]) == 0


def test_mapper_label_map(image, tmp_path):
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {"file_name": image, "sem_seg_file_name": str(tmp_path / "labels.png")}
    out = DatasetMapper(True, augmentations=[T.RandomFlip(1.0)], image_format="RGB")(record)
    np.testing.assert_array_equal(out["sem_seg"], labels[:, ::-1])
    assert out["sem_seg"].dtype == torch.int64
    assert (out["height"], out["width"]) == (4, 6)
    assert "sem_seg_file_name" not in out


def test_mapper_refuses_contradictions():
    with pytest.raises((ValueError, AssertionError), match="recompute_boxes"):
        DatasetMapper(True, augmentations=[], image_format="RGB", recompute_boxes=True)


@lite_only
@pytest.mark.parametrize("option", [{"use_keypoint": True}, {"precomputed_proposal_topk": 5}])
def test_mapper_says_what_d2lite_lacks(option):
    with pytest.raises(ValueError, match="Install Detectron2"):
        DatasetMapper(True, augmentations=[], image_format="RGB", **option)
