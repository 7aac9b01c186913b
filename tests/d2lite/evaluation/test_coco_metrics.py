"""COCO's metrics on a dataset so small that they can be worked out by hand."""

from __future__ import annotations

import json
import math
from itertools import count

import numpy as np
import pytest
import torch
from d2_access import d2_module
from pycocotools import mask as mask_util

from elsa_det import d2

SIZE = 200  # of both images, square
# image, category, box as x0, y0, x1, y1; the masks fill the boxes
OBJECTS = [(11, 3, (0, 0, 100, 100)), (12, 3, (50, 50, 150, 150)), (12, 7, (10, 150, 30, 170))]
CLASS = {3: 0, 7: 1}
NAMES = ["cat", "dog"]
_numbers = count()


def xywh(box):
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def filled(box):
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    x0, y0, x1, y1 = (round(v) for v in box)
    mask[y0:y1, x0:x1] = True
    return mask


def annotation(number, image, category, box, crowd=0):
    x0, y0, x1, y1 = box
    segmentation = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    if crowd:
        rle = mask_util.encode(np.asfortranarray(filled(box).astype(np.uint8)))
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    w, h = x1 - x0, y1 - y0
    extra = {"area": w * h, "iscrowd": crowd, "segmentation": segmentation}
    return {"id": number, "image_id": image, "category_id": category, "bbox": xywh(box), **extra}


def coco_json(objects=OBJECTS, **extra):
    return {
        "info": {},
        "images": [{"id": i, "height": SIZE, "width": SIZE, "file_name": f"{i}.jpg"} for i in (11, 12)],
        "annotations": [annotation(number, *found) for number, found in enumerate(objects, start=1)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        **extra,
    }


@pytest.fixture
def dataset(tmp_path):
    """Makes datasets; they and their metadata are forgotten after the test."""
    made = []

    def make(content=None, converted=False):
        name = f"tiny_{next(_numbers)}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(coco_json() if content is None else content))
        if converted:
            dicts = d2.load_coco_json(str(path), str(tmp_path))
            for image in dicts:
                for found in image["annotations"]:
                    found["category_id"] = CLASS[found["category_id"]]
            d2.DatasetCatalog.register(name, lambda: dicts)
        else:
            d2.DatasetCatalog.register(name, lambda: None)
            d2.MetadataCatalog.get(name).set(json_file=str(path), thing_dataset_id_to_contiguous_id=CLASS)
        d2.MetadataCatalog.get(name).set(thing_classes=NAMES)
        made.append(name)
        return name

    yield make
    for name in made:
        d2.DatasetCatalog.remove(name)
        d2.MetadataCatalog.remove(name)


def detections(found, masks=False):
    """Instances from (class, score, box)."""
    instances = d2.Instances((SIZE, SIZE))
    instances.pred_boxes = d2.Boxes(torch.tensor([box for _, _, box in found], dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor([score for _, score, _ in found], dtype=torch.float32)
    instances.pred_classes = torch.tensor([index for index, _, _ in found], dtype=torch.int64)
    if masks:
        instances.pred_masks = torch.tensor(np.array([filled(box) for _, _, box in found]).reshape(-1, SIZE, SIZE))
    return instances


def evaluate(name, by_image, masks=False, evaluate_args=None, **kwargs):
    evaluator = d2.COCOEvaluator(name, **kwargs)
    evaluator.reset()
    for image, found in by_image.items():
        evaluator.process([{"image_id": image}], [{"instances": detections(found, masks)}])
    return evaluator.evaluate(**(evaluate_args or {}))


def perfect():
    return {
        image: [(CLASS[category], 0.9, box) for where, category, box in OBJECTS if where == image] for image in (11, 12)
    }


def test_perfect_predictions(dataset):
    results = evaluate(dataset(), perfect(), masks=True)
    assert list(results) == ["bbox", "segm"]
    keys = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AP-cat", "AP-dog"]
    for scores in results.values():
        assert list(scores) == keys
        # the dog of 20 × 20 is small, the cats of 100 × 100 are large, nothing is between
        assert math.isnan(scores.pop("APm"))
        assert scores == pytest.approx(dict.fromkeys(scores, 100.0))


def test_boxes_alone(dataset):
    assert list(evaluate(dataset(), perfect())) == ["bbox"]
    assert list(evaluate(dataset(), perfect(), masks=True, tasks=("segm",))) == ["segm"]


def test_overlap_decides_at_each_threshold(dataset):
    found = perfect()
    found[11] = [(0, 0.9, (0, 0, 100, 68))]  # IoU 0.68: a hit up to 0.65, at 4 of 10 thresholds
    for scores in evaluate(dataset(), found, masks=True).values():
        # Where it misses, it stands before the other cat: half the recall, at precision 1/2.
        missed = 51 / 101 * 50
        assert scores["AP-cat"] == pytest.approx(0.4 * 100 + 0.6 * missed)
        assert scores["AP-dog"] == pytest.approx(100.0)
        assert scores["AP50"] == pytest.approx(100.0)
        assert scores["AP75"] == pytest.approx((missed + 100) / 2)


def test_a_false_alarm_before_the_hit(dataset):
    found = perfect()
    found[12].append((1, 0.95, (100, 0, 130, 30)))
    scores = evaluate(dataset(), found)["bbox"]
    assert scores["AP-dog"] == pytest.approx(50.0)
    assert scores["AP-cat"] == pytest.approx(100.0)
    assert scores["AP"] == pytest.approx(75.0)


def test_a_false_alarm_in_a_crowd_is_forgiven(dataset):
    name = dataset(coco_json([*OBJECTS, (12, 7, (100, 0, 200, 50), 1)]))
    found = perfect()
    found[12].append((1, 0.95, (100, 0, 130, 30)))
    assert evaluate(name, found, masks=True)["segm"]["AP-dog"] == pytest.approx(100.0)


def test_only_the_best_detections_count(dataset):
    found = perfect()
    found[11] = [(0, 0.9, (150, 150, 160, 160))] * 12 + [(0, 0.8, OBJECTS[0][2])]
    few = evaluate(dataset(), found, max_dets_per_image=12)["bbox"]
    many = evaluate(dataset(), found, max_dets_per_image=13)["bbox"]
    assert few["AP-dog"] == many["AP-dog"] == pytest.approx(100.0)
    # 12 false alarms of the first image at the same score as the hit of the second, which comes after them
    assert few["AP-cat"] == pytest.approx(51 / 101 / 13 * 100)
    assert many["AP-cat"] == pytest.approx(100 * 2 / 14)


def test_part_of_the_images(dataset):
    found = {11: perfect()[11], 12: []}
    name = dataset()
    assert evaluate(name, found)["bbox"]["AP"] < 60
    scores = evaluate(name, found, evaluate_args={"img_ids": [11]})["bbox"]
    assert scores["AP"] == pytest.approx(100.0)
    assert math.isnan(scores["AP-dog"])


@pytest.mark.filterwarnings("ignore")
def test_no_detections(dataset):
    scores = evaluate(dataset(), {11: [], 12: []})
    assert list(scores) == ["bbox"]
    assert list(scores["bbox"]) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert all(math.isnan(value) for value in scores["bbox"].values())
    assert evaluate(dataset(), {}) == {}


def test_files_left_behind(dataset, tmp_path):
    evaluate(dataset(), perfect(), masks=True, output_dir=str(tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    first, _, last = results
    assert (first["image_id"], first["category_id"], first["bbox"]) == (11, 3, [0.0, 0.0, 100.0, 100.0])
    assert (last["image_id"], last["category_id"], last["bbox"]) == (12, 7, [10.0, 150.0, 20.0, 20.0])
    assert last["score"] == pytest.approx(0.9)
    assert mask_util.area({**last["segmentation"], "counts": last["segmentation"]["counts"].encode()}) == 400
    saved = torch.load(tmp_path / "out" / "instances_predictions.pth", weights_only=True)
    assert [image["image_id"] for image in saved] == [11, 12]
    assert sorted(found["category_id"] for found in saved[1]["instances"]) in ([0, 1], [3, 7])


def test_dataset_without_annotations(dataset, tmp_path):
    content = coco_json()
    del content["annotations"]
    assert evaluate(dataset(content), perfect(), output_dir=str(tmp_path / "out")) == {}
    assert len(json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())) == 3


def test_dataset_that_is_converted(dataset, tmp_path):
    name = dataset(converted=True)
    with pytest.raises(ValueError, match="output_dir"):
        d2.COCOEvaluator(name)
    scores = evaluate(name, perfect(), masks=True, output_dir=str(tmp_path / "out"))
    assert (tmp_path / "out" / f"{name}_coco_format.json").exists()
    assert scores["bbox"]["AP"] == scores["segm"]["AP"] == pytest.approx(100.0)


def test_predictions_must_fit_the_dataset(dataset):
    with pytest.raises((ValueError, AssertionError), match="2 classes"):
        evaluate(dataset(), {11: [(2, 0.9, (0, 0, 10, 10))]})
    with pytest.raises((ValueError, AssertionError)):
        evaluate(dataset(), {99: [(0, 0.9, (0, 0, 10, 10))]})


@pytest.mark.skipif(d2.PROVIDER == d2.UPSTREAM, reason="Detectron2 does keypoints, and has no such checks")
def test_arguments_are_checked(dataset):
    name = dataset()
    for bad in ({"tasks": ["keypoints"]}, {"kpt_oks_sigmas": [0.1]}, {"max_dets_per_image": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            d2.COCOEvaluator(name, **bad)
    found = perfect()
    with pytest.raises(ValueError, match="pred_masks"):
        evaluate(name, found, tasks=["segm"])
    # fewer than COCO's 10: the hit comes second
    found[12].append((1, 0.95, (100, 0, 130, 30)))
    assert evaluate(name, found, max_dets_per_image=1)["bbox"]["AP-dog"] == pytest.approx(0.0)


@pytest.mark.skipif(d2.PROVIDER == d2.UPSTREAM, reason="Detectron2 maps the categories of its own predictions again")
def test_evaluating_twice(dataset):
    evaluator = d2.COCOEvaluator(dataset())
    for image, found in perfect().items():
        evaluator.process([{"image_id": image}], [{"instances": detections(found)}])
    first = evaluator.evaluate()
    assert str(evaluator.evaluate()) == str(first)


def test_json_of_one_image():
    to_json = d2_module("evaluation.coco_evaluation").instances_to_coco_json
    assert to_json(detections([]), 5) == []
    found = to_json(detections([(1, 0.5, (1, 2, 4, 8))]), 5)
    assert found == [{"image_id": 5, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}]
    assert list(to_json(detections([(1, 0.5, (1, 2, 4, 8))], masks=True), 5)[0]["segmentation"]) == ["size", "counts"]
