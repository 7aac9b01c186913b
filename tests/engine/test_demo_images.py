"""The demo on images: pictures, cut-out instances, JSON, COCO's results, label maps, batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from stub_detector import StubDetector, write_stub

from elsa_det.d2 import Boxes, Instances, MetadataCatalog
from elsa_det.engine.demo import Demo, DemoTargets
from elsa_det.engine.demo_outputs import class_indices
from elsa_det.engine.predictor import Predictor
from elsa_det.errors import UserError


@pytest.fixture
def predictor(tmp_path, monkeypatch):
    """The stub's; the working directory has a.png (40×30), b.png (20×60) and more/a.png (40×30)."""
    monkeypatch.chdir(tmp_path)
    Path("more").mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (30, 40)), ("b.png", (60, 20)), ("more/a.png", (30, 40))):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(name)
    return Predictor(*write_stub(tmp_path))


IMAGES = [Path("a.png"), Path("b.png"), Path("more/a.png")]


def run(predictor, images=IMAGES, threshold=0.2, classes=(), batch_size=1, **targets):
    with Demo(predictor, DemoTargets(**targets), threshold=threshold, classes=classes, batch_size=batch_size) as demo:
        demo.run_images(images)
    return demo.report


def test_json(predictor):
    report = run(predictor, json="out/found.json")
    assert report.notes == ["out/found.json: 3 images"]
    assert [p.name for p in Path("out").iterdir()] == ["found.json"]
    found = json.loads(Path("out/found.json").read_text())
    assert {key: found[key] for key in found if key != "images"} == {
        "format": "elsa_det.demo/1",
        "confidence_threshold": 0.2,
        "class_names": ["cat", "dog"],
    }
    a, b, more = found["images"]
    assert [entry["file"] for entry in (a, b, more)] == ["a.png", "b.png", "more/a.png"]
    assert [entry["name"] for entry in (a, b, more)] == ["a", "b", "a_2"]
    assert (b["width"], b["height"]) == (20, 60)
    dog, cat = a["instances"]
    assert (dog["class"], dog["class_index"], dog["box"]) == ("dog", 1, [0, 0, 20, 30])
    assert (cat["class"], cat["class_index"], cat["box"]) == ("cat", 0, [0, 0, 40, 15])
    assert [dog["score"], cat["score"]] == pytest.approx([0.9, 0.3])
    left = np.zeros((30, 40), dtype=np.uint8)
    left[:, :20] = 1
    np.testing.assert_array_equal(coco_mask.decode(dog["mask"]), left)


def test_threshold_and_classes(predictor):
    def found(**options):
        run(predictor, IMAGES[:1], json="found.json", **options)
        (image,) = json.loads(Path("found.json").read_text())["images"]
        return [instance["class"] for instance in image["instances"]]

    assert found() == ["dog", "cat"]
    assert found(threshold=0.5) == ["dog"]
    assert found(classes=["cat"]) == ["cat"]
    assert found(classes=["cat", " dog"]) == ["dog", "cat"]
    assert found(classes=["cat"], threshold=0.5) == []


def test_classes_that_are_not_there():
    names = ["grape", "nut", "date", "apple", "Plum"]
    assert class_indices(["nut", "apple"], names) == (1, 3)
    assert class_indices([""], names) is None
    with pytest.raises(UserError, match=r"no class 'aple'\. Did you mean 'apple' or 'grape'\?"):
        class_indices(["nut", "aple"], names)
    with pytest.raises(UserError, match="Did you mean 'Plum'"):
        class_indices(["plum"], names)
    with pytest.raises(UserError, match=r"no class 'zebra'\. There are: grape, nut, date, apple, Plum\."):
        class_indices(["zebra"], names)
    with pytest.raises(UserError, match="nothing tells the names"):
        class_indices(["nut"], None)


def test_crops_are_cut_by_box_and_mask(predictor):
    report = run(predictor, crops="crops", threshold=0.2)
    assert report.notes == ["crops: 6 instances cut out"]
    assert sorted(p.name for p in Path("crops").iterdir()) == [
        "a_000_dog_0.90.png", "a_001_cat_0.30.png", "a_2_000_dog_0.90.png", "a_2_001_cat_0.30.png",
        "b_000_dog_0.90.png", "b_001_cat_0.30.png",
    ]  # fmt: skip
    source, crop = np.asarray(Image.open("a.png")), np.asarray(Image.open("crops/a_001_cat_0.30.png"))
    np.testing.assert_array_equal(crop[..., :3], source[:15])
    assert (crop[..., 3] == 255).all()


class Odd:
    """Finds a thing with a mask smaller than its box, one beyond the right edge, and one outside of the image."""

    metadata = MetadataCatalog.get("demo_odd").set(thing_classes=["hot dog/bun"])

    def __call__(self, image):
        found = Instances(image.shape[:2])
        found.pred_boxes = Boxes(torch.tensor([[2.4, 1.0, 6.6, 5.0], [35.5, 0, 50, 10], [45, 0, 60, 9]]))
        found.scores, found.pred_classes = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
        found.pred_masks = torch.zeros(3, *image.shape[:2], dtype=torch.bool)
        found.pred_masks[0, 2:4, 3:5] = True
        return {"instances": found}


def test_crops_at_the_edge(predictor):
    report = run(Odd(), [Path("a.png")], crops="crops")
    assert report.notes == ["crops: 2 instances cut out, 1 had a box without pixels"]
    first, second = sorted(Path("crops").iterdir())
    assert (first.name, second.name) == ("a_000_hot-dog-bun_0.90.png", "a_001_hot-dog-bun_0.80.png")
    crop = np.asarray(Image.open(first))
    assert crop.shape == (4, 5, 4)  # rows 1 to 4, columns 2 to 6
    alpha = np.zeros((4, 5), dtype=np.uint8)
    alpha[1:3, 1:3] = 255
    np.testing.assert_array_equal(crop[..., 3], alpha)
    assert Image.open(second).size == (5, 10)


class TestCoco:
    @pytest.fixture
    def annotations(self, predictor):
        """Other ids and another order of classes; two images of one name in two folders; b.png is not there."""
        content = {
            "images": [{"id": 70, "file_name": "a.png"}, {"id": 71, "file_name": "more/a.png"}],
            "annotations": [],
            "categories": [{"id": 3, "name": "dog"}, {"id": 8, "name": "cat"}, {"id": 9, "name": "cow"}],
        }
        for image in content["images"]:
            image.update(width=40, height=30)
        Path("val.json").write_text(json.dumps(content))
        return "val.json"

    def test_ids_of_annotations(self, predictor, annotations):
        report = run(predictor, coco_json="found.json", annotations=annotations)
        assert report.notes == [
            "found.json: 4 detections in 2 images",
            "  category ids of val.json",
            "  1 images left out, for the annotations do not list them: b.png",
        ]
        results = json.loads(Path("found.json").read_text())
        assert [(r["image_id"], r["category_id"], r["bbox"]) for r in results] == [
            (70, 3, [0, 0, 20, 30]), (70, 8, [0, 0, 40, 15]), (71, 3, [0, 0, 20, 30]), (71, 8, [0, 0, 40, 15]),
        ]  # fmt: skip
        loaded = COCO(annotations).loadRes("found.json")
        assert [loaded.annToMask(ann).sum() for ann in loaded.loadAnns([1, 2])] == [600, 600]

    def test_running_numbers(self, predictor):
        report = run(predictor, coco_json="found.json", batch_size=3)
        assert report.notes == [
            "found.json: 6 detections in 3 images",
            "  category ids are class indices + 1, for no dataset tells them",
            "  image ids are running numbers from 1, see found_images.json",
        ]
        results = json.loads(Path("found.json").read_text())
        assert [(r["image_id"], r["category_id"]) for r in results] == [(1, 2), (1, 1), (2, 2), (2, 1), (3, 2), (3, 1)]
        assert json.loads(Path("found_images.json").read_text()) == [
            {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 2, "file_name": "b.png", "width": 20, "height": 60},
            {"id": 3, "file_name": "more/a.png", "width": 40, "height": 30},
        ]

    def test_category_ids_of_the_dataset(self, predictor):
        metadata = MetadataCatalog.get("demo_ids")
        metadata.set(thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={17: 0, 18: 1})
        predictor.dataset_name = "demo_ids"
        run(predictor, IMAGES[:1], coco_json="found.json")
        assert [r["category_id"] for r in json.loads(Path("found.json").read_text())] == [18, 17]
        MetadataCatalog.remove("demo_ids")

    def test_nothing_found(self, predictor):
        run(predictor, coco_json="found.json", threshold=0.99)
        assert json.loads(Path("found.json").read_text()) == []

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"categories": [{"id": 3, "name": "dog"}]}', "has no category 'cat'.*it has dog"),
            ("[]", "not in COCO's format"),
            ('{"categories": [{"id": 3', "bad.json is not json"),
            ('{"images": []}', "not in COCO's format.*categories"),
        ],
    )
    def test_bad_annotations(self, predictor, content, message):
        Path("bad.json").write_text(content)
        with pytest.raises(UserError, match=message):
            run(predictor, coco_json="found.json", annotations="bad.json")
        with pytest.raises(FileNotFoundError, match=r"no annotations 'absent\.json'"):
            run(predictor, coco_json="found.json", annotations="absent.json")
        assert not list(Path().glob("found*"))


class TestBatches:
    def test_same_as_one_by_one(self, predictor):
        for size in (1, 2, 8):
            report = run(predictor, pictures=f"drawn{size}", json=f"{size}.json", batch_size=size)
            assert (report.images, report.instances) == (3, 6)
        for size in (2, 8):
            assert Path(f"{size}.json").read_text() == Path("1.json").read_text()
            for picture in ("a.png", "a_2.png", "b.png"):
                assert Path(f"drawn{size}", picture).read_bytes() == Path("drawn1", picture).read_bytes()

    def test_only_images_of_one_size_run_together(self, predictor, monkeypatch):
        sizes = []
        forward = StubDetector.forward

        def watched(self, batch):
            sizes.append([tuple(entry["image"].shape[1:]) for entry in batch])
            return forward(self, batch)

        monkeypatch.setattr(StubDetector, "forward", watched)
        run(predictor, json="found.json", batch_size=3)
        assert sizes == [[(20, 27), (20, 27)], [(60, 20)]]
        files = [entry["file"] for entry in json.loads(Path("found.json").read_text())["images"]]
        assert files == ["a.png", "b.png", "more/a.png"]

    def test_unreadable_images_do_not_stop_the_others(self, predictor):
        Path("bad.png").write_bytes(b"no image")
        report = run(
            predictor,
            [Path("a.png"), Path("bad.png"), Path("gone.png"), Path("b.png")],
            json="found.json",
            batch_size=4,
        )
        assert report.images == 2
        assert ["bad.png" in report.problems[0], "gone.png" in report.problems[1]] == [True, True]
        files = [entry["file"] for entry in json.loads(Path("found.json").read_text())["images"]]
        assert files == ["a.png", "b.png"]


class Halves:
    """Labels the left half sky (0) and the right half the last of its classes."""

    def __init__(self, count=2):
        names = [f"class{index}" for index in range(count)]
        self.metadata = MetadataCatalog.get(f"demo_halves_{count}").set(stuff_classes=names)
        self.last = count - 1

    def __call__(self, image):
        labels = torch.zeros(image.shape[:2], dtype=torch.int64)
        labels[:, image.shape[1] // 2 :] = self.last
        return {"sem_seg_labels": labels}


class TestSegmentors:
    @pytest.mark.parametrize(("count", "kind"), [(2, np.uint8), (255, np.uint8), (300, np.uint16)])
    def test_label_maps(self, predictor, count, kind):
        report = run(Halves(count), [Path("a.png")], labels="labels", json="found.json")
        labels = np.asarray(Image.open("labels/a.png"))
        assert labels.dtype == kind
        assert (np.unique(labels[:, :20]), np.unique(labels[:, 20:])) == ([0], [count - 1])
        assert report.labelled == 1
        (entry,) = json.loads(Path("found.json").read_text())["images"]
        assert entry["labels"] == [
            {"class": "class0", "class_index": 0, "pixels": 600},
            {"class": f"class{count - 1}", "class_index": count - 1, "pixels": 600},
        ]
        assert entry["label_file"] == "a.png"

    def test_class_filter_is_for_the_overlay(self, predictor):
        grey = np.full((30, 40, 3), 90, dtype=np.uint8)
        Image.fromarray(grey).save("grey.png")
        run(Halves(), [Path("grey.png")], pictures="drawn", labels="labels", classes=["class1"])
        drawn = np.asarray(Image.open("drawn/grey.png"))
        assert (drawn[100, 100] == 90).all()
        assert (drawn[100, 500] != 90).any()
        assert len(np.unique(np.asarray(Image.open("labels/grey.png")))) == 2

    @pytest.mark.parametrize("target", ["crops", "coco_json"])
    def test_what_needs_instances(self, predictor, target):
        with pytest.raises(UserError, match="this model labels pixels"):
            run(Halves(), **{target: "out"})
        assert not list(Path().glob("out*.part"))
        assert not Path("out").is_file()

    def test_what_needs_labels(self, predictor):
        with pytest.raises(UserError, match="this model finds instances"):
            run(predictor, labels="out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Nothing would be kept"),
        ({"json": "x.json", "coco_json": "./x.json"}, "the same file, x.json"),
        ({"json": "x.json", "annotations": "val.json"}, "give coco_json"),
        ({"json": "x.json", "batch_size": 0}, "at least 1 image, got 0"),
        ({"json": "x.json", "threshold": float("nan")}, "got nan"),
        ({"json": "x.json", "classes": ["dgo"]}, "Did you mean 'dog'"),
    ],
)
def test_mistakes(predictor, options, message):
    with pytest.raises(UserError, match=message):
        run(predictor, **options)


def test_a_json_is_whole_or_not_there(predictor, monkeypatch):
    def fails(self, batch):
        raise RuntimeError("out of memory")

    run(predictor, json="found.json")
    before = Path("found.json").read_text()
    monkeypatch.setattr(StubDetector, "forward", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(predictor, json="found.json", coco_json="coco.json")
    assert Path("found.json").read_text() == before
    assert not Path("coco.json").exists()
    assert not list(Path().glob("*.part"))


def test_stopping_keeps_what_was_done(predictor, monkeypatch):
    forward = StubDetector.forward

    def interrupted(self, batch):
        if len(self.inputs) == 2:
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(StubDetector, "forward", interrupted)
    report = run(predictor, json="found.json")
    assert report.stopped
    assert report.problems == ["stopped after 2 of 3 images"]
    assert len(json.loads(Path("found.json").read_text())["images"]) == 2
