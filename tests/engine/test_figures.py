"""Pictures and curves of a run."""

from __future__ import annotations

import json

import matplotlib.colors
import numpy as np
import pytest
import torch
from PIL import Image

from elsa_det.d2 import Boxes, DatasetCatalog, Instances, MetadataCatalog
from elsa_det.data.shapes import SetSpec, register_shapes, write_shapes
from elsa_det.engine.drawing import draw_ground_truth, draw_predictions
from elsa_det.engine.figures import comparison_figure, read_metrics, save_figure, training_figure


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def found(size, boxes, classes, scores, masks=None):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    if masks is not None:
        instances.pred_masks = torch.as_tensor(masks)
    return {"instances": instances}


RUN = [
    {"iteration": 19, "total_loss": 2.0, "loss_cls": 1.5, "loss_box_reg": 0.5, "lr": 0.01, "time": 0.3},
    {"iteration": 39, "total_loss": 1.0, "loss_cls": 0.8, "loss_box_reg": 0.2, "lr": 0.02},
    {"iteration": 39, "bbox/AP": 12.5, "bbox/AP50": 30.0, "bbox/AP75": float("nan"), "bbox/AP-disc": 9.0, "segm/AP": 8},
    {"iteration": 59, "total_loss": 0.5, "loss_cls": 0.4, "loss_box_reg": 0.1, "lr": 0.002, "rpn/num": 3.0},
]


class TestReadMetrics:
    def test_series(self, tmp_path):
        write_lines(tmp_path / "metrics.json", RUN)
        metrics = read_metrics(tmp_path)
        iterations, values = metrics["total_loss"]
        assert iterations.tolist() == [19, 39, 59]
        assert values.tolist() == [2.0, 1.0, 0.5]
        assert metrics["segm/AP"][1].tolist() == [8.0]
        assert read_metrics(tmp_path / "metrics.json").keys() == metrics.keys()

    def test_a_resumed_run_overwrites(self, tmp_path):
        path = write_lines(tmp_path / "metrics.json", [*RUN, {"iteration": 39, "total_loss": 1.25}])
        assert read_metrics(path)["total_loss"][1].tolist() == [2.0, 1.25, 0.5]

    def test_a_cut_off_last_line_is_left_out(self, tmp_path, caplog):
        path = write_lines(tmp_path / "metrics.json", RUN)
        path.write_text(path.read_text() + '{"iteration": 79, "total_')
        assert read_metrics(path)["total_loss"][0].tolist() == [19, 39, 59]
        assert "incomplete" in caplog.text

    def test_errors(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"metrics\.json"):
            read_metrics(tmp_path)
        path = tmp_path / "metrics.json"
        path.write_text("\n")
        with pytest.raises(ValueError, match="no metrics in it"):
            read_metrics(path)
        path.write_text('{"iteration": 1, "lr": 1}\nnonsense\n{"iteration": 2, "lr": 1}\n')
        with pytest.raises(ValueError, match="line 2"):
            read_metrics(path)


class TestTrainingFigure:
    def test_curves(self, tmp_path):
        figure = training_figure(read_metrics(write_lines(tmp_path / "metrics.json", RUN)), "a run")
        losses, rate, scores, _ = figure.axes
        assert [line.get_label() for line in losses.lines] == ["total_loss", "loss_box_reg", "loss_cls"]
        assert losses.lines[0].get_ydata().tolist() == [2.0, 1.0, 0.5]
        assert rate.lines[0].get_ydata().tolist() == [0.01, 0.02, 0.002]
        # AP75 is nowhere a number; AP of single classes would crowd the figure.
        assert [line.get_label() for line in scores.lines] == ["box AP  12.5", "box AP50  30.0", "mask AP  8.0"]
        assert (losses.get_yscale(), rate.get_xlabel(), scores.get_ylabel()) == ("log", "iteration", "AP (%)")
        save_figure(figure, tmp_path / "new" / "curves.png")
        assert Image.open(tmp_path / "new" / "curves.png").size == (1440, 624)

    def test_no_evaluation_yet(self, tmp_path):
        figure = training_figure(read_metrics(write_lines(tmp_path / "metrics.json", RUN[:2])))
        assert figure.axes[2].texts[0].get_text() == "no evaluation yet"

    def test_several_test_sets(self, tmp_path):
        path = write_lines(tmp_path / "metrics.json", [{"iteration": 9, "b/bbox/AP": 1.0, "a/bbox/AP": 2.0}])
        labels = [line.get_label() for line in training_figure(read_metrics(path)).axes[2].lines]
        assert labels == ["a box AP  2.0", "b box AP  1.0"]

    def test_neither_losses_nor_scores(self, tmp_path):
        path = write_lines(tmp_path / "metrics.json", [{"iteration": 9, "lr": 1.0}])
        with pytest.raises(ValueError, match=r"neither losses nor evaluations.*\['lr'\]"):
            training_figure(read_metrics(path))


class TestDrawing:
    def test_masks_boxes_and_holes(self):
        image = np.full((160, 160, 3), 100, dtype=np.uint8)
        mask = np.zeros((1, 160, 160), dtype=bool)
        mask[0, 60:150, 10:150] = True
        mask[0, 90:120, 50:100] = False
        metadata = MetadataCatalog.get("drawing_test").set(thing_classes=["hole"], thing_colors=[[200, 100, 50]])
        drawn = draw_predictions(image, found((160, 160), [[10, 60, 150, 150]], [0], [0.8], mask), metadata, scale=1)
        MetadataCatalog.remove("drawing_test")
        assert drawn.shape == image.shape
        assert drawn[135, 80].tolist() == [80, 100, 140]  # 0.6 · 100 + 0.4 · (50, 100, 200), in BGR
        assert drawn[105, 75].tolist() == [100, 100, 100]  # the hole
        assert drawn[10, 150].tolist() == [100, 100, 100]
        assert (drawn[40:55, 12:60] < 40).all(axis=2).any()  # the label stands above the box
        assert (image == 100).all()

    def test_small_images_are_enlarged_and_weak_predictions_left_out(self):
        image = np.full((60, 80, 3), 100, dtype=np.uint8)
        metadata = MetadataCatalog.get("__absent__")
        drawn = draw_predictions(image, found((60, 80), [[4, 4, 56, 56]], [3], [0.4]), metadata, threshold=0.5)
        assert drawn.shape == (480, 640, 3)
        assert (drawn == 100).all()
        drawn = draw_predictions(image, found((60, 80), [[4, 4, 56, 56]], [3], [0.4]), metadata, threshold=0.4)
        assert (drawn != 100).any()

    def test_every_coco_segmentation(self):
        image = np.full((40, 40, 3), 100, dtype=np.uint8)
        metadata = MetadataCatalog.get("__absent__")
        square = {"bbox": [10, 10, 20, 20], "bbox_mode": 1, "category_id": 0}
        polygon = [[10, 10, 30, 10, 30, 30, 10, 30]]
        rle = {"size": [40, 40], "counts": [10 * 40 + 10] + [20, 20] * 19 + [20, 10 * 40 + 10]}
        drawn = [
            draw_ground_truth(image, {"annotations": [{**square, "segmentation": segmentation}]}, metadata)
            for segmentation in (polygon, rle)
        ]
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert (draw_ground_truth(image, {}, metadata) == 100).all()

    def test_outputs_without_instances(self):
        with pytest.raises(ValueError, match="sem_seg"):
            draw_predictions(np.zeros((4, 4, 3), dtype=np.uint8), {"sem_seg": None}, MetadataCatalog.get("__absent__"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("figures") / "quickstart"
    write_shapes(root, SetSpec(train=1, val=3))
    yield register_shapes(root)[1]
    for name in ("quickstart_train", "quickstart_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


class TestComparison:
    def test_ground_truth_beside_predictions(self, dataset, tmp_path):
        seen = []

        def predict(image):
            seen.append(image)
            return found(image.shape[:2], [[8, 8, 60, 60], [0, 0, 9, 9]], [4, 0], [0.9, 0.1])

        figure = comparison_figure(dataset, predict, count=2)
        entries = DatasetCatalog.get(dataset)
        counts = [len(entries[i]["annotations"]) for i in (0, 2)]
        titles = [axes.get_title() for axes in figure.axes]
        assert titles == [
            f"000000 · {counts[0]} annotated",
            "1 predicted",
            f"000002 · {counts[1]} annotated",
            "1 predicted",
        ]
        np.testing.assert_array_equal(seen[0][:, :, ::-1], np.asarray(Image.open(entries[0]["file_name"])))
        save_figure(figure, tmp_path / "pairs.png")
        assert Image.open(tmp_path / "pairs.png").size == (1728, 504)

    def test_no_more_images_than_there_are(self, dataset):
        figure = comparison_figure(dataset, lambda image: found(image.shape[:2], [], [], []), count=50)
        assert len(figure.axes) == 6

    def test_count_must_be_positive(self, dataset):
        with pytest.raises(ValueError, match="count"):
            comparison_figure(dataset, lambda image: {}, count=0)


def test_the_figure_is_coloured_with_the_safe_palette(tmp_path):
    figure = training_figure(read_metrics(write_lines(tmp_path / "metrics.json", RUN)))
    colors = {matplotlib.colors.to_hex(line.get_color()) for line in figure.axes[2].lines}
    assert colors == {"#0072b2", "#d55e00"}
