"""LVIS's metrics on a set so small that they can be worked out by hand, and recorded ones of a drawn set."""

from __future__ import annotations

import json
import math
import random
from itertools import count

import numpy as np
import pytest
import torch
from lvis_files import IMAGES, OBJECTS, SIZE, annotation, lvis_content, needs_lvis, write_lvis

from elsa_det import d2

pytestmark = needs_lvis
lite_only = pytest.mark.skipif(d2.PROVIDER == d2.UPSTREAM, reason="messages of d2lite")
METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
_numbers = count()


@pytest.fixture
def dataset(tmp_path):
    """Makes datasets; they and their metadata are forgotten after the test."""
    made = []

    def make(content=None):
        name = f"tiny_lvis_{next(_numbers)}"
        d2.register_lvis_instances(name, {}, write_lvis(tmp_path, content, f"{name}.json"), "")
        made.append(name)
        return name

    yield make
    for name in made:
        d2.DatasetCatalog.remove(name)
        d2.MetadataCatalog.remove(name)


def filled(box) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    x0, y0, x1, y1 = (round(v) for v in box)
    mask[y0:y1, x0:x1] = True
    return mask


def detections(found, masks=False) -> d2.Instances:
    """Instances from (class, score, box)."""
    instances = d2.Instances((SIZE, SIZE))
    instances.pred_boxes = d2.Boxes(torch.tensor([box for _, _, box in found], dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor([score for _, score, _ in found], dtype=torch.float32)
    instances.pred_classes = torch.tensor([index for index, _, _ in found], dtype=torch.int64)
    if masks:
        instances.pred_masks = torch.tensor(np.array([filled(box) for _, _, box in found]).reshape(-1, SIZE, SIZE))
    return instances


def evaluate(name, by_image, masks=False, **kwargs):
    evaluator = d2.LVISEvaluator(name, **kwargs)
    evaluator.reset()
    for image, found in by_image.items():
        evaluator.process([{"image_id": image}], [{"instances": detections(found, masks)}])
    return evaluator.evaluate()


def perfect():
    return {
        number: [(category - 1, 0.9, box) for image, category, box in OBJECTS if image == number] for number in IMAGES
    }


def defined(scores: dict[str, float]) -> dict[str, float]:
    """Those that are defined: undefined ones are NaN here and -100 in Detectron2."""
    return {name: value for name, value in scores.items() if value >= 0}


def test_perfect_predictions(dataset):
    results = evaluate(dataset(), perfect(), masks=True)
    assert list(results) == ["bbox", "segm"]
    for scores in results.values():
        assert list(scores) == METRICS
        assert scores == pytest.approx(dict.fromkeys(METRICS, 100.0))
    assert list(evaluate(dataset(), perfect())) == ["bbox"]
    assert list(evaluate(dataset(), perfect(), masks=True, tasks=("segm",))) == ["segm"]


def test_nothing_counts_where_nothing_is_known(dataset):
    found = perfect()
    found[14] += [(1, 0.95, (0, 0, 30, 30)), (3, 0.95, (0, 0, 30, 30))]
    found[12] += [(2, 0.95, (0, 0, 30, 30))]
    for scores in evaluate(dataset(), found, masks=True).values():
        assert scores == pytest.approx(dict.fromkeys(METRICS, 100.0))


def test_a_false_alarm_where_the_class_is_known_to_be_absent(dataset):
    found = perfect()
    found[14].append((0, 0.95, (0, 0, 30, 30)))
    for scores in evaluate(dataset(), found, masks=True).values():
        # wrong, right, right: precision 2/3 at every recall; the false alarm is small, the objects are large
        assert scores["APf"] == pytest.approx(200 / 3)
        assert scores["AP50"] == pytest.approx(800 / 9)
        assert scores["AP"] == pytest.approx((200 / 3 + 200) / 3)
        assert [scores[key] for key in ("APr", "APc", "APs", "APm", "APl")] == pytest.approx([100.0] * 5)


def test_a_false_alarm_beside_objects_of_the_class(dataset):
    found = perfect()
    found[11].append((0, 0.95, (120, 0, 200, 60)))  # not annotated in full there
    assert evaluate(dataset(), found)["bbox"]["APf"] == pytest.approx(100.0)
    found[12].append((0, 0.95, (120, 0, 200, 30)))  # in full there
    assert evaluate(dataset(), found)["bbox"]["APf"] == pytest.approx(200 / 3)


def test_a_bad_box_is_not_held_against_an_incomplete_image(dataset):
    found = perfect()
    found[11][0] = (0, 0.95, (0, 0, 100, 68))  # IoU 0.68: a hit up to 0.65, at 4 of 10 thresholds
    scores = evaluate(dataset(), found)["bbox"]
    # above that it is forgotten, and one of two objects is found
    assert scores["APf"] == pytest.approx(0.4 * 100 + 0.6 * 51 / 101 * 100)
    assert scores["AP75"] == pytest.approx((51 / 101 * 100 + 200) / 3)


def test_the_limit_is_for_all_classes_together(dataset):
    found = perfect()
    found[11][1] = (2, 0.8, OBJECTS[1][2])
    scores = evaluate(dataset(), found, max_dets_per_image=1)["bbox"]
    assert scores["APc"] == pytest.approx(0.0)  # the cup has the lower score
    assert scores["APr"] == pytest.approx(51 / 101 * 100)  # apple and bow score the same: the first one stays
    assert evaluate(dataset(), found, max_dets_per_image=2)["bbox"]["AP"] == pytest.approx(100.0)


def test_groups_without_objects(dataset):
    content = lvis_content([found for found in OBJECTS if found[1] == 1])
    scores = evaluate(dataset(content), perfect())["bbox"]
    assert defined(scores) == pytest.approx(dict.fromkeys(["AP", "AP50", "AP75", "APl", "APf"], 100.0))
    if d2.PROVIDER == d2.LITE:
        assert all(math.isnan(scores[key]) for key in ("APs", "APm", "APr", "APc"))


@pytest.mark.filterwarnings("ignore")
def test_no_detections(dataset):
    scores = evaluate(dataset(), {11: [], 12: []})
    assert list(scores) == ["bbox"]
    assert list(scores["bbox"]) == METRICS
    assert all(math.isnan(value) for value in scores["bbox"].values())
    assert evaluate(dataset(), {}) == {}


def test_files_left_behind(dataset, tmp_path):
    evaluate(dataset(), perfect(), masks=True, output_dir=str(tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    assert [(found["image_id"], found["category_id"]) for found in results] == [found[:2] for found in OBJECTS]
    assert results[0]["bbox"] == [0.0, 0.0, 100.0, 100.0]
    assert results[0]["score"] == pytest.approx(0.9)
    assert results[0]["segmentation"]["size"] == [SIZE, SIZE]
    saved = torch.load(tmp_path / "out" / "instances_predictions.pth", weights_only=True)
    assert [image["image_id"] for image in saved] == list(IMAGES)


def test_test_sets_have_no_annotations(dataset, tmp_path):
    results = evaluate(dataset(lvis_content(annotations=[])), perfect(), output_dir=str(tmp_path / "out"))
    assert not results
    assert len(json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())) == len(OBJECTS)


# ---------------------------------------------------------------- a drawn set

# Recorded with Detectron2 (02b5c4e) and the package lvis (7d7f07d).
RECORDED = {
    300: {
        "bbox": [26.1396, 49.2872, 24.8608, 16.1967, 36.0721, 75.2721, 18.2692, 32.5857, 27.564],
        "segm": [26.5553, 48.7459, 24.3981, 16.5778, 36.7325, 75.6406, 18.8011, 33.6678, 27.1969],
    },
    5: {
        "bbox": [14.9765, 29.5109, 14.0816, 9.6472, 23.096, 42.2076, 10.5858, 16.6028, 17.7409],
        "segm": [15.1989, 29.0218, 13.5169, 9.8456, 23.5159, 42.4826, 10.6169, 17.3587, 17.6211],
    },
}


def drawn():
    """A set with everything in it: 30 images, 9 classes, objects of all sizes, and detections near and far."""
    draw = random.Random(0)

    def box(longest: int) -> tuple[int, ...]:
        width, height = draw.randint(8, longest), draw.randint(8, longest)
        x, y = draw.randint(0, SIZE - width), draw.randint(0, SIZE - height)
        return x, y, x + width, y + height

    objects, found, images = [], {}, []
    for number in range(100, 130):
        found[number] = []
        present = draw.sample(range(1, 10), 3)
        for category in present:
            for _ in range(draw.randint(1, 3)):
                placed = box(draw.choice([30, 80, 190]))
                objects.append((number, category, placed))
                if draw.random() < 0.75:
                    moved = [min(max(v + draw.gauss(0, 2.5), 0), SIZE) for v in placed]
                    found[number].append((category - 1, draw.random() ** 0.5, moved))
        for _ in range(6):
            found[number].append((draw.randint(0, 8), draw.random(), box(90)))
        images.append(
            {
                "id": number,
                "height": SIZE,
                "width": SIZE,
                "coco_url": f"http://images.cocodataset.org/val2017/{number}.jpg",
                "neg_category_ids": draw.sample([c for c in range(1, 10) if c not in present], 3),
                "not_exhaustive_category_ids": draw.sample(present, draw.randint(0, 1)),
            }
        )
    categories = [{"id": c, "name": str(c), "synonyms": [str(c)], "frequency": "rcf"[c % 3]} for c in range(1, 10)]
    annotations = [annotation(i, *one) for i, one in enumerate(objects, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}, found


@pytest.mark.parametrize("limit", [300, 5])
def test_recorded_metrics(dataset, limit):
    content, found = drawn()
    results = evaluate(dataset(content), found, masks=True, max_dets_per_image=limit)
    for task, expected in RECORDED[limit].items():
        assert list(results[task].values()) == pytest.approx(expected, abs=1e-4), task


# ---------------------------------------------------------------- bad input


@lite_only
def test_messages(dataset):
    with pytest.raises(ValueError, match="a prediction has class 4, but dataset .* has 4 classes"):
        evaluate(dataset(), {11: [(4, 0.9, (0, 0, 10, 10))]})
    with pytest.raises(ValueError, match=r"LVISEvaluator: 1 image id\(s\) of the predictions, such as 99, are not in"):
        evaluate(dataset(), {99: [(0, 0.9, (0, 0, 10, 10))]})
    with pytest.raises(ValueError, match="there are predictions without pred_masks"):
        evaluate(dataset(), perfect(), tasks=["segm"])
    with pytest.raises(ValueError, match="max_dets_per_image=0 must be at least 1"):
        d2.LVISEvaluator(dataset(), max_dets_per_image=0)
    with pytest.raises(ValueError, match="names no json_file"):
        d2.LVISEvaluator("no_such_dataset")
    d2.MetadataCatalog.remove("no_such_dataset")
    content = lvis_content()
    del content["images"][0]["neg_category_ids"]
    with pytest.raises(ValueError, match="image 14 of .* has no 'neg_category_ids', so the file is not in LVIS's"):
        d2.LVISEvaluator(dataset(content))
    content = lvis_content()
    del content["categories"][0]["frequency"]
    with pytest.raises(ValueError, match="category 4 of .* has no 'frequency'"):
        d2.LVISEvaluator(dataset(content))
    content["categories"][0]["frequency"] = "often"
    with pytest.raises(ValueError, match="one of r, c, f, but there is \\['often'\\]"):
        d2.LVISEvaluator(dataset(content))


@lite_only
def test_evaluating_twice(dataset):
    evaluator = d2.LVISEvaluator(dataset())
    for image, found in perfect().items():
        evaluator.process([{"image_id": image}], [{"instances": detections(found, masks=True)}])
    assert str(evaluator.evaluate()) == str(evaluator.evaluate())
