"""Cityscapes' own evaluation, on a folder of one made-up frame."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elsa_det.d2 import Boxes, DatasetCatalog, Instances, MetadataCatalog
from elsa_det.data.semantic.builtin import register_all
from elsa_det.errors import UserError
from elsa_det.evaluation import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator

FRAME = "aachen_000000_000019"
HEIGHT, WIDTH = 60, 80


@pytest.fixture
def cityscapes(tmp_path, monkeypatch):
    """Road, two cars and what does not count, registered; the working directory is the folder's."""
    labels, instances = np.full((HEIGHT, WIDTH), 7, np.uint8), np.full((HEIGHT, WIDTH), 7, np.uint16)
    labels[5:35, 5:40], instances[5:35, 5:40] = 26, 26000
    labels[35:58, 30:75], instances[35:58, 30:75] = 26, 26001
    labels[:3], instances[:3] = 4, 4
    for below, ending, pixels in (
        ("leftImg8bit", "leftImg8bit", np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
        ("gtFine", "gtFine_labelIds", labels),
        ("gtFine", "gtFine_instanceIds", instances),
    ):
        folder = tmp_path / "data" / "cityscapes" / below / "val" / "aachen"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{FRAME}_{ending}.png")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    forget()
    register_all(str(tmp_path / "data"))
    yield labels, instances
    forget()
    register_all()


def forget():
    for name in [name for name in DatasetCatalog.list() if name.startswith("elsa_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def train_ids(labels):
    """Road 0, car 13, everything else a wrong guess."""
    return torch.from_numpy(np.where(labels == 26, 13, 0))


def test_semantic(cityscapes, tmp_path):
    labels, _ = cityscapes
    predicted = train_ids(labels)
    predicted[10:20, 5:40] = 0  # a third of the first car is lost
    entries = DatasetCatalog.get("elsa_cityscapes_semantic_val")
    evaluator = CityscapesSemanticEvaluator("elsa_cityscapes_semantic_val", str(tmp_path / "out"))
    evaluator.reset()
    evaluator.process(entries, [{"sem_seg_labels": predicted}])
    scores = evaluator.evaluate()["sem_seg"]
    cars, lost, road = 30 * 35 + 23 * 45, 10 * 35, (HEIGHT - 3) * WIDTH - 30 * 35 - 23 * 45
    car_iou, road_iou = (cars - lost) / cars, road / (road + lost)
    assert scores["IoU-car"] == pytest.approx(100 * car_iou)
    assert scores["mIoU"] == pytest.approx(50 * (car_iou + road_iou))
    assert scores["IoU"] == pytest.approx(scores["mIoU"])  # the official script agrees
    # iIoU weighs each car's pixels by the mean size of cars over its own
    mean = 12794.0202738185
    hit = mean * (700 / 1050 + 1)
    assert scores["iIoU"] == pytest.approx(100 * hit / (2 * mean), rel=1e-6)
    assert scores["IoU_sup"] == pytest.approx(scores["IoU"])  # the categories "vehicle" and "flat" have these two alone
    written = np.asarray(Image.open(tmp_path / "out" / "sem_seg_predictions" / f"{FRAME}_pred.png"))
    np.testing.assert_array_equal(written, np.where(predicted.numpy() == 13, 26, 7))
    assert list(Path.cwd().iterdir()) == []


def test_semantic_without_instances(cityscapes, tmp_path):
    (entry,) = DatasetCatalog.get("elsa_cityscapes_semantic_val")
    Path(entry["sem_seg_file_name"].replace("labelIds", "instanceIds")).unlink()
    evaluator = CityscapesSemanticEvaluator("elsa_cityscapes_semantic_val")
    evaluator.reset()
    evaluator.process([entry], [{"sem_seg_labels": train_ids(cityscapes[0])}])
    assert len(list(evaluator.folder.iterdir())) == 1
    scores = evaluator.evaluate()["sem_seg"]
    assert not evaluator.folder.exists()  # a temporary one
    assert (scores["IoU"], math.isnan(scores["iIoU"])) == (pytest.approx(100), True)


def detections(masks, classes, scores):
    found = Instances((HEIGHT, WIDTH))
    found.pred_masks = torch.from_numpy(np.stack(masks))
    found.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    found.pred_classes = torch.tensor(classes)
    found.scores = torch.tensor(scores)
    return found


def test_instances(cityscapes, tmp_path):
    _, instances = cityscapes
    (entry,) = DatasetCatalog.get("elsa_cityscapes_instance_val")
    evaluator = CityscapesInstanceEvaluator("elsa_cityscapes_instance_val", str(tmp_path / "out"))
    first, second = instances == 26000, instances == 26001

    def scores_of(masks, scores):
        evaluator.reset()
        evaluator.process([entry], [{"instances": detections(masks, [2] * len(masks), scores)}])
        return evaluator.evaluate()["segm"]

    perfect = scores_of([first, second], [0.9, 0.8])
    assert (perfect["AP"], perfect["AP50"], perfect["AP-car"]) == (100, 100, 100)
    assert math.isnan(perfect["AP-bus"])
    listing = (tmp_path / "out" / "segm_predictions" / f"{FRAME}_pred.txt").read_text().split()
    assert (listing[0], listing[1], float(listing[2])) == (f"{FRAME}_0.png", "26", pytest.approx(0.9))
    half = first.copy()
    half[:24] = False  # IoU 11/30 < 0.5: not found
    worse = scores_of([half, second], [0.9, 0.8])
    assert 0 < worse["AP50"] < 100
    assert list(Path.cwd().iterdir()) == []


def test_mistakes(cityscapes, tmp_path):
    (entry,) = DatasetCatalog.get("elsa_cityscapes_instance_val")
    evaluator = CityscapesInstanceEvaluator("elsa_cityscapes_instance_val", str(tmp_path / "out"))
    evaluator.reset()
    mask = np.ones((HEIGHT, WIDTH), bool)
    with pytest.raises(UserError, match=r"class 11, elsa_cityscapes_instance_val has 8 .*num_classes=8"):
        evaluator.process([entry], [{"instances": detections([mask], [11], [0.5])}])
    boxes = Instances((HEIGHT, WIDTH))
    boxes.pred_boxes = Boxes(torch.zeros(0, 4))
    with pytest.raises(UserError, match="no masks"):
        evaluator.process([entry], [{"instances": boxes}])
    assert evaluator.evaluate() == {}


def test_what_the_script_refuses(cityscapes, tmp_path, capsys):
    (entry,) = DatasetCatalog.get("elsa_cityscapes_semantic_val")
    evaluator = CityscapesSemanticEvaluator("elsa_cityscapes_semantic_val", str(tmp_path / "out"))
    evaluator.reset()
    evaluator.process([entry], [{"sem_seg_labels": train_ids(cityscapes[0])}])
    Path(tmp_path, "out", "sem_seg_predictions", f"{FRAME}_pred.png").unlink()
    with pytest.raises(UserError, match="evalPixelLevelSemanticLabeling.* cannot evaluate 1 files"):
        evaluator.evaluate()
    assert "ERROR" in capsys.readouterr().out
