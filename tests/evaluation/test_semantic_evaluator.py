"""Scores of semantic segmentation against a computation of their own, pixel by pixel, and against Detectron2's."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from d2_access import d2_module
from PIL import Image

from elsa_det import d2
from elsa_det.d2 import DatasetCatalog, MetadataCatalog, inference_on_dataset
from elsa_det.data import registered_semantic
from elsa_det.data.semantic import LabelEncoding, register_semantic
from elsa_det.data.semantic.labels import plain_encoding, zero_ignored_encoding
from elsa_det.errors import UserError
from elsa_det.evaluation import SemanticEvaluator
from elsa_det.evaluation.semantic_metrics import dense_confusion, segmentation_scores, sparse_confusion

NAMES = ["sky", "road", "tree", "car", "fox"]
PLAIN = plain_encoding(5)


def write_set(folder: Path, encoding: LabelEncoding = PLAIN, count: int = 4) -> tuple[list, list]:
    """Random label maps (the fox never occurs) and predictions; gives dataset dicts and predictions."""
    generator = np.random.default_rng(7)
    entries, predictions = [], []
    for index in range(count):
        size = (12 + index, 17)
        truth = generator.integers(0, 4, size)
        predicted = np.where(generator.random(size) < 0.6, truth, generator.integers(0, 5, size))
        stored = encoding.encode(truth)
        stored[generator.random(size) < 0.1] = encoding.ignored_ids[0]
        for part, pixels in (("images", np.zeros((*size, 3), np.uint8)), ("labels", stored)):
            (folder / part / "town").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / part / "town" / f"{index}.png")
        entries.append(
            {
                "file_name": str(folder / "images" / "town" / f"{index}.png"),
                "sem_seg_file_name": str(folder / "labels" / "town" / f"{index}.png"),
            }
        )
        predictions.append(torch.from_numpy(predicted))
    return entries, predictions


@pytest.fixture
def dataset(tmp_path):
    entries, predictions = write_set(tmp_path)
    name = "semantic_evaluator_test"
    register_semantic(name, lambda: entries, NAMES, plain_encoding(5), image_root=str(tmp_path / "images"))
    yield name, entries, predictions
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def by_pixel(entries, predictions):
    """The scores from sets of pixels, one class at a time."""
    truth = np.concatenate([np.asarray(Image.open(e["sem_seg_file_name"])).ravel() for e in entries])
    predicted = np.concatenate([p.numpy().ravel() for p in predictions])[truth != 255]
    truth = truth[truth != 255]
    scores = {"pACC": 100 * (truth == predicted).mean()}
    share = {}
    for index, name in enumerate(NAMES):
        both, either = ((truth == index) & (predicted == index)).sum(), ((truth == index) | (predicted == index)).sum()
        there = (truth == index).sum()
        share[name] = there / len(truth)
        scores[f"IoU-{name}"] = 100 * both / either if there else math.nan
        scores[f"ACC-{name}"] = 100 * both / there if there else math.nan
    present = [name for name in NAMES if share[name]]
    scores["mIoU"] = sum(scores[f"IoU-{name}"] for name in present) / len(present)
    scores["mACC"] = sum(scores[f"ACC-{name}"] for name in present) / len(present)
    scores["fwIoU"] = sum(scores[f"IoU-{name}"] * share[name] for name in present)
    return scores


def run(evaluator, entries, answers, size=2):
    evaluator.reset()
    for start in range(0, len(entries), size):
        evaluator.process(entries[start : start + size], answers[start : start + size])
    return evaluator.evaluate()


def test_scores_by_pixel(dataset, tmp_path):
    name, entries, predictions = dataset
    evaluator = SemanticEvaluator(name, str(tmp_path / "out"))
    results = run(evaluator, entries, [{"sem_seg_labels": p} for p in predictions])
    expected = by_pixel(entries, predictions)
    assert list(results) == ["sem_seg"]
    assert results["sem_seg"] == pytest.approx(expected, nan_ok=True)
    assert math.isnan(results["sem_seg"]["IoU-fox"])
    assert evaluator.confusion.sum() == sum(
        (np.asarray(Image.open(entry["sem_seg_file_name"])) != 255).sum() for entry in entries
    )
    written = json.loads((tmp_path / "out" / "sem_seg_evaluation.json").read_text())
    assert written["images"] == 4
    assert written["sem_seg"]["IoU-fox"] is None
    assert written["sem_seg"]["mIoU"] == pytest.approx(expected["mIoU"])
    stored = np.load(tmp_path / "out" / "sem_seg_confusion.npz")
    np.testing.assert_array_equal(stored["confusion"], evaluator.confusion)
    assert stored["names"].tolist() == NAMES


def test_scores_of_classes_give_the_same_as_their_best(dataset):
    name, entries, predictions = dataset
    one_hot = [{"sem_seg": torch.nn.functional.one_hot(p, 5).permute(2, 0, 1).float()} for p in predictions]
    results = run(SemanticEvaluator(name), entries, one_hot)
    assert results["sem_seg"] == pytest.approx(by_pixel(entries, predictions), nan_ok=True)


def test_an_image_given_twice_counts_once(dataset):
    name, entries, predictions = dataset
    answers = [{"sem_seg_labels": p} for p in predictions]
    twice = run(SemanticEvaluator(name), [*entries, *entries[:3]], [*answers, *answers[:3]])
    assert twice["sem_seg"] == pytest.approx(by_pixel(entries, predictions), nan_ok=True)


@pytest.mark.skipif(d2.PROVIDER != d2.UPSTREAM, reason="compares with Detectron2's own evaluator")
def test_detectron2_says_the_same(dataset):
    name, entries, predictions = dataset
    theirs = d2_module("evaluation").SemSegEvaluator(name, distributed=False)
    one_hot = [{"sem_seg": torch.nn.functional.one_hot(p, 5).permute(2, 0, 1).float()} for p in predictions]
    expected = run(theirs, entries, one_hot)["sem_seg"]
    found = run(SemanticEvaluator(name), entries, one_hot)["sem_seg"]
    assert set(found) == {key for key in expected if "B-I" not in key and "BoundaryIoU" not in key}  # IoU of borders
    assert found == pytest.approx({key: expected[key] for key in found}, nan_ok=True)


def test_nothing_but_ignored_pixels():
    scores = segmentation_scores(np.zeros((2, 2), int), ["a", "b"])
    assert all(math.isnan(value) for value in scores.values())


def test_sparse_counts_add_up():
    generator = np.random.default_rng(0)
    expected = np.zeros((6, 6), dtype=int)
    parts = []
    for _ in range(3):
        truth, predicted = generator.integers(0, 7, (9, 8)), generator.integers(0, 6, (9, 8))
        parts.append(sparse_confusion(truth, predicted, 6, ignore_label=6))
        for t, p in zip(truth.ravel(), predicted.ravel()):
            if t != 6:
                expected[t, p] += 1
    np.testing.assert_array_equal(dense_confusion(parts, 6), expected)


def test_predictions_in_the_form_of_the_labels(tmp_path):
    """ADE20K's tools take the class index + 1."""
    encoding = zero_ignored_encoding(5)
    entries, predictions = write_set(tmp_path, encoding)
    name = "semantic_predictions_test"
    register_semantic(name, lambda: entries, NAMES, encoding, image_root=str(tmp_path / "images"))
    try:
        evaluator = SemanticEvaluator(name, str(tmp_path / "out"), write_predictions=True)
        run(evaluator, entries, [{"sem_seg_labels": p} for p in predictions])
        for index, predicted in enumerate(predictions):
            written = Image.open(tmp_path / "out" / "sem_seg_predictions" / "town" / f"{index}.png")
            assert written.mode == "L"
            np.testing.assert_array_equal(np.asarray(written), predicted.numpy() + 1)
        evaluator.reset()
        assert list((tmp_path / "out" / "sem_seg_predictions").rglob("*.png")) == []
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    with pytest.raises(UserError, match="needs an output_dir"):
        SemanticEvaluator("elsa_ade20k_val", write_predictions=True)


def test_what_does_not_fit_is_named(dataset, tmp_path):
    name, entries, predictions = dataset
    evaluator = SemanticEvaluator(name)
    evaluator.reset()
    with pytest.raises(UserError, match=r"0\.png is 17×12 pixels .* is 16×12"):
        evaluator.process(entries[:1], [{"sem_seg_labels": predictions[0][:, :16]}])
    with pytest.raises(UserError, match="model has 7 classes, the dataset 5"):
        evaluator.process(entries[:1], [{"sem_seg": torch.zeros(7, 12, 17)}])
    with pytest.raises(UserError, match=r"predicts the labels 0\.\.9, the dataset has 5 classes"):
        evaluator.process(entries[:1], [{"sem_seg_labels": torch.arange(204).view(12, 17) % 10}])
    with pytest.raises(UserError, match=r"no 'sem_seg' but \['instances'\]"):
        evaluator.process(entries[:1], [{"instances": None}])
    with pytest.raises(UserError, match="no label map"):
        evaluator.process([{"file_name": "a.png"}], [{"sem_seg_labels": predictions[0]}])
    with pytest.raises(UserError, match="none of|no classes for semantic"):
        SemanticEvaluator("coco_2017_val")
    assert evaluator.evaluate() == {}


def two_processes(folder: str) -> None:
    """Each process gets two images, and one of the second's is also the first's."""
    entries, predictions = write_set(Path(folder) / str(d2.comm.get_rank()))
    root = Path(folder) / "0"
    d2.comm.synchronize()
    entries = [{k: v.replace(f"{folder}/1/", f"{root}/") for k, v in entry.items()} for entry in entries]
    name = registered_semantic(None, f"{root}/images", f"{root}/labels", num_classes=5)
    evaluator = SemanticEvaluator(name, f"{folder}/out")
    mine = [0, 1, 2] if d2.comm.get_rank() == 0 else [2, 3]
    results = inference_on_dataset(
        lambda batch: [{"sem_seg_labels": predictions[int(Path(entry["file_name"]).stem)]} for entry in batch],
        [[entries[index]] for index in mine],
        evaluator,
    )
    Path(folder, f"{d2.comm.get_rank()}.json").write_text(json.dumps(results))


def test_two_processes(tmp_path):
    d2.launch(two_processes, 2, dist_url="auto", args=(str(tmp_path),))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    entries, predictions = write_set(tmp_path / "again")
    expected = by_pixel(entries, predictions)
    renamed = {
        key.replace(name, f"class {i}"): expected[key]
        for i, name in enumerate(NAMES)
        for key in expected
        if name in key
    }
    renamed |= {key: expected[key] for key in ("mIoU", "fwIoU", "mACC", "pACC")}
    assert first["sem_seg"] == pytest.approx(renamed, nan_ok=True)
    assert second == {}
