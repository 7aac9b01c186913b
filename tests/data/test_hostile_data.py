"""Files of data that name files elsewhere, are too large, or are nothing at all, are refused by name."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from stub_detector import write_stub

from elsa_det.d2 import DatasetCatalog, detection_utils
from elsa_det.data import registered_coco, registered_semantic
from elsa_det.data.coco_check import ERROR, HEADERS, NAMES, PIXELS, check_coco, read_coco
from elsa_det.data.coco_merge import merge
from elsa_det.data.semantic.labels import plain_encoding, read_labels
from elsa_det.engine.demo import Demo, DemoTargets
from elsa_det.engine.demo_inputs import FrameSource
from elsa_det.engine.predictor import Predictor, as_bgr, read_image
from elsa_det.errors import UserError
from elsa_det.evaluation import SemanticEvaluator
from elsa_det.images import check_size
from elsa_det.json_files import read_json


def png_header(path, width, height):
    """A PNG that says how large it is, and has next to no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )
    return path


@pytest.fixture
def coco(tmp_path):
    """Writes a json with one image of a given name, and gives it with its folder."""
    root = tmp_path / "images"
    root.mkdir()
    Image.new("RGB", (8, 6)).save(root / "a.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")

    def write(file_name, **changes):
        image = {"id": 1, "file_name": file_name, "width": 8, "height": 6} | changes
        objects = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "area": 9, "iscrowd": 0}]
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(
            json.dumps({"images": [image], "annotations": objects, "categories": [{"id": 1, "name": "nut"}]})
        )
        return str(path), str(root)

    return write


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", "x/../../outside.png", "link.png", ".."])
def test_names_in_a_json_stay_in_their_folder(coco, name, monkeypatch, tmp_path):
    json_file, root = coco(name)
    (finding,) = check_coco(json_file, root, look=NAMES).of(ERROR)
    assert finding.kind == "file_name leads out of the image folder"
    assert "ELSA_DET_TRUST=paths" in finding.remedy
    with pytest.raises(UserError, match=r"file_name .* leads out of the folder .*ELSA_DET_TRUST=paths") as caught:
        DatasetCatalog.get(registered_coco(None, json_file, root))
    assert json_file in str(caught.value)
    with pytest.raises(UserError, match="leads out of the folder"):
        merge([(read_coco(tmp_path / json_file), json_file, root)], [{"id": 1, "name": "nut"}])
    monkeypatch.setenv("ELSA_DET_TRUST", "paths")
    assert len(DatasetCatalog.get(registered_coco(None, json_file, root))) == 1


def test_names_that_stay(coco):
    for name in ("a.png", "./a.png", "b/../a.png"):
        json_file, root = coco(name)
        (entry,) = DatasetCatalog.get(registered_coco(None, json_file, root))
        assert entry["file_name"].endswith(name)
    json_file, root = coco(f"{root}/a.png")  # absolute, and below the folder
    assert not check_coco(json_file, root).of(ERROR)


def test_label_maps_stay_in_their_folder(tmp_path, monkeypatch):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.png")
    Image.new("L", (8, 6)).save(tmp_path / "outside.png")
    (tmp_path / "labels" / "a.png").symlink_to(tmp_path / "outside.png")
    roots = str(tmp_path / "images"), str(tmp_path / "labels")
    with pytest.raises(UserError, match=r"labels/a.png' leads out of the folder .*ELSA_DET_TRUST=paths"):
        registered_semantic(None, *roots, num_classes=2)
    monkeypatch.setenv("ELSA_DET_TRUST", "paths")
    (entry,) = DatasetCatalog.get(registered_semantic(None, *roots, num_classes=2))
    assert entry["sem_seg_file_name"].endswith("labels/a.png")


def test_predictions_stay_in_their_folder(tmp_path):
    evaluator = SemanticEvaluator.__new__(SemanticEvaluator)
    evaluator.folder, evaluator.metadata = tmp_path / "out", SimpleNamespace(get=lambda key: "data/images")
    for name, expected in (
        ("data/images/town/a.jpg", "town/a.png"),
        ("data/images/../../../b.jpg", "b.png"),
        ("/etc/c.jpg", "c.png"),
    ):
        assert evaluator.prediction_file({"file_name": name}) == tmp_path / "out" / expected


@pytest.mark.parametrize("size", [(50_000, 50_000), (50_000, 2), (2, 40_000), (14_000, 14_000)])
def test_images_are_refused_by_their_header(tmp_path, coco, size):
    image = png_header(tmp_path / "images" / "bomb.png", *size)
    too_large = r"(is [\d,]+×[\d,]+ pixels|exceeds limit).*(ELSA_DET_MAX_IMAGE_PIXELS|sides up to 32,767)"
    for read in (read_image, detection_utils.read_image, lambda path: read_labels(path, plain_encoding(2))):
        with pytest.raises(UserError, match=too_large) as caught:
            read(str(image))
        assert "bomb.png" in str(caught.value)
    json_file, root = coco("bomb.png", width=size[0], height=size[1])
    kinds = [finding.kind for finding in check_coco(json_file, root, look=NAMES).of(ERROR)]
    assert any("×" in kind and "pixels" in kind for kind in kinds)
    json_file, root = coco("bomb.png")
    for look in (HEADERS, PIXELS):
        (finding,) = check_coco(json_file, root, look=look).of(ERROR)
        assert "no more than" in finding.kind or "sides up to" in finding.kind


def test_the_limit_can_be_moved(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20)).save(path)
    monkeypatch.setenv("ELSA_DET_MAX_IMAGE_PIXELS", "599")
    for refused in (lambda: read_image(path), lambda: as_bgr(np.zeros((20, 30, 3), np.uint8))):
        with pytest.raises(
            UserError, match=r"30×20 pixels \(width×height\), 600 in all, and no more than 599 are read"
        ):
            refused()
    monkeypatch.setenv("ELSA_DET_MAX_IMAGE_PIXELS", "600")
    assert read_image(path).shape == (20, 30, 3)
    monkeypatch.setenv("ELSA_DET_MAX_IMAGE_PIXELS", "many")
    with pytest.raises(UserError, match="ELSA_DET_MAX_IMAGE_PIXELS=many"):
        read_image(path)
    monkeypatch.setenv("ELSA_DET_MAX_IMAGE_PIXELS", str(10**9))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    check_size(30_000, 30_000, "it")
    with pytest.raises(UserError, match="truncated|broken"):  # let through by Pillow's own limit as well
        read_image(png_header(tmp_path / "b.png", 20_000, 20_000))


def test_videos_are_refused_by_the_size_of_their_frames(tmp_path, monkeypatch):
    path = str(tmp_path / "a.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    with FrameSource(path) as source:
        assert next(iter(source)).shape == (48, 64, 3)
    monkeypatch.setenv("ELSA_DET_MAX_IMAGE_PIXELS", "3000")
    with pytest.raises(UserError, match=r"a frame of video .*a\.avi' is 64×48 pixels"):
        FrameSource(path)


def test_a_demo_goes_on_without_an_image_that_is_too_large(tmp_path):
    bomb = png_header(tmp_path / "bomb.png", 50_000, 50_000)
    good = tmp_path / "good.png"
    Image.new("RGB", (32, 24)).save(good)
    with Demo(Predictor(*write_stub(tmp_path)), DemoTargets(pictures=tmp_path / "out")) as demo:
        demo.run_images([bomb, good])
    assert demo.report.images == 1
    (problem,) = demo.report.problems
    assert "bomb.png" in problem
    assert "ELSA_DET_MAX_IMAGE_PIXELS" in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"images": ' * 50_000, "nested too deeply"),
        ("9" * 5000, "is not json: Exceeds the limit"),
        ("\udcff", "is not json"),
        ("", "is not json"),
    ],
)
def test_json_that_is_none(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    for read in (read_json, read_coco):
        with pytest.raises(UserError, match=message):
            read(path)


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), 1e300])
def test_numbers_that_no_image_has(coco, value):
    for changes in ({"width": value}, {"height": value}):
        json_file, root = coco("a.png", **changes)
        (finding, *_) = check_coco(json_file, root).of(ERROR)
        assert "not two positive whole numbers" in finding.kind
    json_file, root = coco("a.png")
    json_file = Path(json_file)
    content = read_coco(json_file)
    for changes in ({"bbox": [1, 1, value, 2]}, {"segmentation": {"size": [6, value], "counts": [48]}}):
        changed = content | {"annotations": [content["annotations"][0] | changes]}
        json_file.write_text(json.dumps(changed))
        assert len(check_coco(json_file, root).of(ERROR)) == 1
