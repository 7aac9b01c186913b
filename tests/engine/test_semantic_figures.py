"""Pictures of segmentations."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from elsa_det.d2 import DatasetCatalog, MetadataCatalog
from elsa_det.data import registered_semantic
from elsa_det.engine.demo import run_demo
from elsa_det.engine.figures import save_figure
from elsa_det.engine.semantic_figures import (
    WRONG,
    confusion_figure,
    draw_errors,
    draw_segmentation,
    draw_segmentor_answer,
    is_segmentation,
    save_confusion_figure,
    semantic_comparison_figure,
)
from elsa_det.errors import UserError

GREY = np.full((60, 80, 3), 100, np.uint8)


def metadata(classes=("sky", "road"), colors=((255, 0, 0), (0, 255, 0))):
    facts = {"stuff_classes": list(classes), "stuff_colors": list(colors)}
    return SimpleNamespace(get=lambda key, default=None: facts.get(key, default))


def test_overlay_has_the_colours_of_the_classes():
    labels = np.zeros((60, 80), np.uint8)
    labels[30:] = 1
    labels[:, 60:] = 255
    drawn = draw_segmentation(GREY, labels, metadata(), legend=False)
    assert drawn.shape == (60, 80, 3)
    # BGR: 45 % of the grey and 55 % of red above, green below
    assert drawn[10, 10].tolist() == [45, 45, 185]
    assert drawn[50, 10].tolist() == [45, 185, 45]
    assert drawn[10, 70].tolist() == [100, 100, 100]
    assert (drawn[30, 10] > 150).all()  # the line between regions


def test_legend_stands_beside_the_picture():
    labels = np.zeros((60, 80), np.uint8)
    labels[:15] = 1
    drawn = draw_segmentation(GREY, labels, metadata(), scale=8)
    assert drawn.shape[0] == 480
    assert drawn.shape[1] > 8 * 80 + 60
    strip = drawn[:, 8 * 80 :]
    # the larger class first
    red, green = ((strip == color).all(axis=2) for color in ([0, 0, 255], [0, 255, 0]))
    assert red.any()
    assert green.any()
    assert np.argwhere(red)[0, 0] < np.argwhere(green)[0, 0]


def test_many_classes_and_none_named():
    labels = (np.arange(60 * 80) % 60).reshape(60, 80)
    drawn = draw_segmentation(GREY, labels, metadata((), ()), scale=8)
    assert drawn.shape[0] == 480
    with pytest.raises(ValueError, match=r"image is \(60, 80\), its labels are \(2, 2\)"):
        draw_segmentation(GREY, labels[:2, :2], metadata())


def test_answers_of_segmentors():
    scores = torch.zeros(2, 60, 80)
    scores[1, :, 40:] = 1
    by_scores = draw_segmentor_answer(GREY, {"sem_seg": scores}, metadata())
    by_labels = draw_segmentor_answer(GREY, {"sem_seg_labels": scores.argmax(0)}, metadata())
    np.testing.assert_array_equal(by_scores, by_labels)
    assert is_segmentation({"sem_seg": scores})
    assert not is_segmentation({"instances": None})
    assert not is_segmentation({"sem_seg": scores, "instances": None})


class Halves:
    """Labels the left half 0 and the right half 1."""

    metadata = metadata()

    def __call__(self, image):
        labels = torch.zeros(image.shape[:2], dtype=torch.int64)
        labels[:, image.shape[1] // 2 :] = 1
        return {"sem_seg_labels": labels}


def test_demo(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    report = run_demo(Halves(), [tmp_path / "a.png"], tmp_path / "out")
    assert (report.labelled, report.instances, report.problems) == (1, 0, [])
    drawn = np.asarray(Image.open(tmp_path / "out" / "a.png")).astype(int)
    assert drawn.shape[0] == 480
    assert (drawn[200, 100] - [185, 45, 45] == 0).all()
    assert (drawn[200, 600] - [45, 185, 45] == 0).all()


def test_errors_stand_out():
    truth = np.zeros((60, 80), np.uint8)
    predicted = truth.copy()
    predicted[:, 40:] = 1
    truth[50:] = 255
    drawn = draw_errors(truth, predicted, GREY).astype(int)
    distance = np.abs(drawn - np.array(WRONG)).sum(axis=2)
    assert (distance[:50, 40:] < 80).all()
    assert (distance[:50, :40] > 150).all()
    assert (distance[50:] > 150).all()


@pytest.fixture
def dataset(tmp_path):
    for index in range(3):
        for part, pixels in (("images", GREY), ("labels", np.eye(60, 80, dtype=np.uint8) * index)):
            (tmp_path / part).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / part / f"{index}.png")
    name = registered_semantic(None, str(tmp_path / "images"), str(tmp_path / "labels"), num_classes=3)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_comparison(dataset, tmp_path):
    figure = semantic_comparison_figure(
        dataset, lambda image: {"sem_seg_labels": torch.zeros(image.shape[:2], dtype=torch.int64)}, count=2
    )
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == ["0", "ground truth", "prediction", "errors (orange); 100% of pixels right"]
    assert titles[7].endswith("99% of pixels right")  # 60 of 4800 pixels are wrong
    save_figure(figure, tmp_path / "out.png")
    assert Image.open(tmp_path / "out.png").size[0] > 1000
    with pytest.raises(UserError, match="at least 1, got 0"):
        semantic_comparison_figure(dataset, lambda image: {}, count=0)


def test_confusion_matrix_in_shares():
    confusion = np.array([[90, 10, 0], [0, 0, 0], [25, 25, 50]])
    axes = confusion_figure(confusion, ["a", "b", "c"]).axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(np.ma.filled(shown, np.nan)[:2], [[0.9, 0, 0.1], [0.25, 0.5, 0.25]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "c", "b"]
    assert "not in the ground truth" in [text.get_text() for text in axes.texts]


def test_rare_classes_are_shown_together():
    confusion = np.diag(np.arange(40, 0, -1))
    confusion[39, 0] = 3
    axes = confusion_figure(confusion, [f"c{i}" for i in range(40)], most=5).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == "35 others"
    rest = np.arange(35, 0, -1).sum()
    assert axes.images[0].get_array()[5, 0] == pytest.approx(3 / (rest + 3))
    with pytest.raises(ValueError, match="2 classes cannot be"):
        confusion_figure(confusion, ["a", "b"])


def test_figure_after_an_evaluation(tmp_path):
    evaluator = SimpleNamespace(confusion=np.eye(2), output_dir=str(tmp_path), class_names=["a", "b"])
    save_confusion_figure(evaluator)
    assert (tmp_path / "sem_seg_confusion.png").is_file()
    save_confusion_figure(SimpleNamespace(output_dir=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()
