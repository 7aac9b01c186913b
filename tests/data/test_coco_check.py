"""The check of COCO-format data: every fault is found, named and located."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from elsa_det.data import coco_check
from elsa_det.data.coco_check import DROPPED, ERROR, NOTE, check_coco
from elsa_det.errors import UserError


def rle(height, width):
    encoded = coco_mask.encode(np.asfortranarray(np.eye(height, width, dtype=np.uint8)))
    return {"size": [height, width], "counts": encoded["counts"].decode()}


def annotation(number, image_id, **changes):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 3,
        "bbox": [10, 10, 20, 30],
        "area": 600,
        "iscrowd": 0,
        "segmentation": [[10, 10, 30, 10, 30, 40, 10, 40]],
    } | changes


GOOD = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 80, "height": 60},
        {"id": 2, "file_name": "b.png", "width": 64, "height": 48},
        {"id": 5, "file_name": "c.jpg", "width": 200, "height": 150},
    ],
    "categories": [{"id": 3, "name": "nut"}, {"id": 7, "name": "fig"}],
    "annotations": [
        annotation(1, 1),
        annotation(2, 1, category_id=7, bbox=[0, 0, 40, 40], segmentation=rle(60, 80)),
        annotation(3, 5, iscrowd=1, segmentation={"size": [150, 200], "counts": [0, 30000]}),
        annotation(4, 5, bbox=[0, 0, 150, 100], segmentation=[]),
    ],
}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for image in GOOD["images"]:
        pixels = rng.integers(0, 255, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / image["file_name"])
    return tmp_path


def check(folder, content, **options):
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return check_coco(path, folder, **options)


def test_good_data(folder):
    done = []
    report = check(folder, GOOD, progress=lambda i, n: done.append((i, n)))
    assert (report.images, report.without_objects, report.crowds) == (3, 1, 1)
    assert report.instances == {"nut": 2, "fig": 1}
    assert report.sizes == {"small": 1, "medium": 1, "large": 1}
    assert report.image_sizes == {(80, 60): 1, (64, 48): 1, (200, 150): 1}
    assert [(f.severity, f.kind) for f in report.findings] == [(NOTE, "object without segmentation")]
    assert done == [(1, 3), (2, 3), (3, 3)]
    report.raise_for_errors()


ANNOTATION_FAULTS = [
    (dict(category_id=4), ERROR, "category_id 4 is not among the categories", "ids there are: 3 to 7"),
    (dict(category_id=None), ERROR, "category_id None is not among the categories", ""),
    (dict(bbox=[10, 10, 0, 5]), DROPPED, "zero-area box [10, 10, 0, 5]", ""),
    (dict(bbox=[10, 10, 5]), ERROR, "bbox is [10, 10, 5]", "[x, y, width, height]"),
    (dict(bbox=[10, 10, 5, float("nan")]), ERROR, "bbox is [10, 10, 5, nan]", ""),
    (dict(bbox=[90, 10, 5, 5]), ERROR, "box [90, 10, 5, 5] lies outside its image of 80 x 60", ""),
    (dict(bbox=[70, 10, 30, 5]), NOTE, "box reaches beyond its image, and is clipped", ""),
    (dict(segmentation=[[1, 1, 5, 5]]), DROPPED, "polygon with 2 points, fewer than 3", ""),
    (dict(segmentation=[[1, 1, 5, 5, 6]]), DROPPED, "polygon with 5 coordinates, an odd number", ""),
    (dict(segmentation=[[1, 1, 5, 5], [0, 0, 9, 0, 9, 9]]), NOTE, "polygon with 2 points, fewer than 3", ""),
    (dict(segmentation=[[90, 0, 99, 0, 99, 9]]), ERROR, "polygon lies outside its image of 80 x 60", ""),
    (dict(segmentation=[[70, 0, 99, 0, 99, 9]]), NOTE, "polygon reaches beyond its image, and is clipped", ""),
    (dict(segmentation=[[1, 1, 5, 5, 9, 9]]), NOTE, "polygon of no area", ""),
    (dict(segmentation="x"), ERROR, "segmentation is neither polygons nor an RLE", ""),
    (dict(segmentation={"size": [60, 80]}), ERROR, "an RLE needs 'size' and 'counts'", ""),
    (dict(segmentation=rle(80, 60)), ERROR, "RLE of 60 x 80 in an image of 80 x 60", ""),
    (dict(segmentation={"size": [60, 80], "counts": [5]}), ERROR, "RLE counts do not sum to 60 x 80 pixels", ""),
    (dict(ignore=1), ERROR, "'ignore' is not supported", "iscrowd"),
    (dict(image_id=99), DROPPED, "annotation of an image that is not in the file", ""),
    (dict(id=2), ERROR, "annotation id is used twice", ""),
]


@pytest.mark.parametrize(("changes", "severity", "kind", "remedy"), ANNOTATION_FAULTS)
def test_faults_of_annotations(folder, changes, severity, kind, remedy):
    content = copy.deepcopy(GOOD)
    content["annotations"] = [annotation(2, 1, category_id=7), annotation(9, 1) | changes]
    found = [f for f in check(folder, content).findings if f.kind == kind]
    assert [f.severity for f in found] == [severity]
    assert found[0].where.startswith(f"annotation {changes.get('id', 9)} of image {changes.get('image_id', 1)}")
    assert remedy in found[0].remedy


def test_faults_of_images(folder):
    content = copy.deepcopy(GOOD)
    content["annotations"] = []
    content["images"] += [
        {"id": 6, "file_name": "gone.png", "width": 8, "height": 8},
        {"id": 7, "file_name": "../b.png", "width": 8, "height": 8},
        {"id": 8, "file_name": "half.png", "width": 80, "height": 60},
        {"id": 9, "file_name": "text.png", "width": 8, "height": 8},
        {"id": 10, "file_name": "b.png", "width": 48, "height": 64},
        {"id": 1, "file_name": "a.png", "width": 80, "height": 60},
        {"id": 11, "file_name": "a.png", "width": 0, "height": 60},
        {"id": 12, "width": 3},
        {"file_name": "a.png"},
    ]
    whole = (folder / "a.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no image")
    report = check(folder, content)
    errors = {f.where: f.kind for f in report.of(ERROR)}
    assert errors == {
        "image 6 (gone.png)": "image file is missing",
        "image 7 (../b.png)": "file_name leads out of the image folder",
        "image 8 (half.png)": "image is truncated",
        "image 9 (text.png)": errors["image 9 (text.png)"],
        "image 10 (b.png)": "image is 64 x 48, the json says 48 x 64 (width and height are swapped)",
        "image 1 (a.png)": "image id is used twice",
        "image 11 (a.png)": "size 0 x 60 is not two positive whole numbers",
        "image 12": "image has no file_name, height",
        "entry 11 of images": "an image needs an 'id'",
    }
    assert errors["image 9 (text.png)"].startswith("image cannot be read: cannot identify image file")
    with pytest.raises(UserError, match=r"9 error\(s\) in .*instances\.json(.|\n)*and 4 more(.|\n)*check_data\.py"):
        report.raise_for_errors()


def test_a_look_at_headers_decodes_what_is_cut_off_only(folder, monkeypatch):
    content = copy.deepcopy(GOOD)
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[:200] + bytes(len(whole) - 212) + whole[-12:])  # ends as a whole one does
    pixels = (folder / "c.jpg").read_bytes()
    (folder / "c.jpg").write_bytes(pixels[: len(pixels) // 2])
    (folder / "b.png").unlink()
    kinds = lambda look: [f.kind for f in check(folder, content, look=look).of(ERROR)]  # noqa: E731
    assert kinds("names") == ["image file is missing"]
    assert kinds("headers") == kinds("auto") == ["image file is missing", "image is truncated"]
    broken, *others = kinds("pixels")
    assert broken.startswith("image cannot be read: ")
    assert others == ["image file is missing", "image is truncated"]
    monkeypatch.setattr(coco_check, "FEW", 2)
    assert kinds("auto") == ["image file is missing"]


def test_rotation_by_exif_counts(folder):
    pixels = Image.fromarray(np.zeros((60, 80, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels.save(folder / "c.jpg", exif=exif)
    content = copy.deepcopy(GOOD)
    content["images"][2] |= {"width": 60, "height": 80}
    content["annotations"] = []
    for look in ("headers", "pixels"):
        assert check(folder, content, look=look).of(ERROR) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not json: .*Is the download complete"),
        ("[]", "expected an object .* got a list"),
        ({"images": []}, "no list 'categories'"),
        ({"images": {}, "categories": []}, "no list 'images'"),
        ({"images": [], "categories": []}, "'categories' is empty"),
    ],
)
def test_what_is_not_coco(folder, content, message):
    with pytest.raises(UserError, match=message):
        check(folder, content)


def test_faults_of_categories(folder):
    content = copy.deepcopy(GOOD)
    content["categories"] += [{"id": 3, "name": "other"}, {"id": 9, "name": "fig"}, {"name": "x"}]
    kinds = {(f.where, f.kind) for f in check(folder, content).of(ERROR)}
    assert kinds == {
        ("category 3", "category id is used twice"),
        ("category 9", "class name 'fig' is used twice"),
        ("category None", "a category needs an integer 'id' and a 'name'"),
    }


def test_missing_paths(folder):
    with pytest.raises(FileNotFoundError, match="annotations .*gone.json do not exist"):
        check_coco(folder / "gone.json", folder)
    with pytest.raises(FileNotFoundError, match="image_root=.* is not a folder"):
        check_coco(folder / "gone.json", folder / "no")
