"""Pictures of predictions and annotations."""

from __future__ import annotations

import random

import numpy as np
import torch
from d2_access import d2_module
from fidelity.cases_data import registered
from fidelity.harness import case, error_of, folder, random_boxes
from PIL import Image
from pycocotools import mask as mask_util

from elsa_det import d2

HEIGHT, WIDTH = 96, 128
CELL = 8  # pixels of a side of the squares whose mean colours are compared


def picture() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x + 40, y + 60, (x + y) // 2 + 20], 2).astype(np.uint8)


def seen(output) -> dict:
    """Size, and the mean colours of squares: letters are a matter of the library that draws them, places are not."""
    image = output.get_image().astype(np.float64)
    height, width = (side // CELL * CELL for side in image.shape[:2])
    squares = image[:height, :width].reshape(height // CELL, CELL, width // CELL, CELL, 3).mean((1, 3))
    return {"shape": list(image.shape), "colours": torch.as_tensor(squares).round().to(torch.int16).float()}


def masks(boxes: torch.Tensor) -> torch.Tensor:
    """Of each box the left half, less a hole."""
    out = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(out, boxes.round().int().tolist()):
        mask[y0:y1, x0 : (x0 + x1) // 2 + 1] = True
        mask[y0 + 4 : y0 + 8, x0 + 3 : x0 + 7] = False
    return out


def predictions(with_masks: bool = True) -> d2.Instances:
    boxes = random_boxes(4, HEIGHT, WIDTH, seed=3, smallest=20)
    found = d2.Instances((HEIGHT, WIDTH), pred_boxes=d2.Boxes(boxes), scores=torch.tensor([0.9, 0.55, 0.304, 1.0]))
    found.pred_classes = torch.tensor([0, 1, 1, 2])
    if with_masks:
        found.pred_masks = masks(boxes)
    return found


def metadata():
    made = d2.MetadataCatalog.get("fid_drawn")
    made.thing_classes, made.thing_colors = ["cat", "dog", "hen"], [(250, 0, 0), (0, 0, 250), (0, 200, 50)]
    made.stuff_classes, made.stuff_colors = ["sky", "sea", "sand"], [(0, 250, 0), (10, 20, 250), (200, 200, 0)]
    return made


def seeded() -> None:
    random.seed(1)
    np.random.seed(1)


def squares_case(*covers: str, what: str):
    return case(
        *covers, what=what, atol=1.0, why="edges and letters, as the drawing library smooths them, of 255 levels"
    )


@squares_case(
    "Visualizer", "ColorMode", what="predictions in all modes, with boxes or masks only, larger, without names"
)
def of_predictions():
    out: dict = {}
    with registered("fid_drawn"):
        for mode in d2.ColorMode:
            seeded()
            drawn = d2.Visualizer(picture(), metadata(), scale=1.25, instance_mode=mode)
            out[mode.name] = seen(drawn.draw_instance_predictions(predictions()))
        for name, found in {"boxes": predictions(False), "one": predictions()[:1], "none": predictions()[:0]}.items():
            seeded()
            out[name] = seen(d2.Visualizer(picture(), metadata()).draw_instance_predictions(found))
        seeded()
        out["plain"] = seen(d2.Visualizer(picture()).draw_instance_predictions(predictions(False)))
    out["modes"] = [f"{mode.name}={mode.value}" for mode in d2.ColorMode]
    return out


@squares_case(
    "Visualizer", what="annotations with polygons, RLE and crowds; label maps, with and without text, small parts"
)
def of_annotations():
    out: dict = {}
    rle = mask_util.encode(np.asfortranarray(masks(torch.tensor([[60.0, 50, 120, 90]]))[0].numpy().astype(np.uint8)))
    common = {"bbox_mode": d2.BoxMode.XYWH_ABS}
    objects = [
        {"bbox": [10, 10, 40, 30], "category_id": 0, "segmentation": [[10, 10, 50, 10, 30, 40]], **common},
        {"bbox": [60, 50, 60, 40], "category_id": 2, "segmentation": rle, "iscrowd": 1, **common},
    ]
    labelled = np.zeros((HEIGHT, WIDTH), np.uint8)
    labelled[40:] = 1
    labelled[70:90, 20:100] = 2
    labelled[5:7, 5:7] = 2
    labelled[:20, 100:] = 255
    with registered("fid_drawn"), folder() as at:
        Image.fromarray(labelled).save(at / "labels.png")
        for name, record in {
            "objects": {"annotations": objects},
            "boxes": {"annotations": [{k: v for k, v in each.items() if k != "segmentation"} for each in objects]},
            "both": {"annotations": objects[:1], "sem_seg": labelled},
            "file": {"sem_seg_file_name": str(at / "labels.png")},
        }.items():
            seeded()
            out[name] = seen(d2.Visualizer(picture(), metadata()).draw_dataset_dict(record))
        for name, options in {
            "labels": {},
            "silent": {"draw_text": False, "alpha": 0.3},
            "parts": {"area_threshold": 50},
        }.items():
            seeded()
            out[name] = seen(d2.Visualizer(picture(), metadata()).draw_sem_seg(torch.as_tensor(labelled), **options))
    return out


@squares_case("Visualizer", what="single boxes, texts, polygons, masks and overlays in given colours; errors")
def of_shapes():
    out: dict = {}
    polygon = np.array([[10.0, 10], [60, 15], [40, 70]])
    mask = masks(torch.tensor([[30.0, 20, 110, 80]]))[0].numpy()
    boxes = random_boxes(3, HEIGHT, WIDTH, seed=9, smallest=15)
    colours = [(1.0, 0, 0), (0, 0.5, 1.0), "g"]
    for name, draw in {
        "box": lambda v: v.draw_box((10, 20, 90, 70), edge_color="r", line_style="--"),
        "text": lambda v: v.draw_text("words", (60, 40), color="y", horizontal_alignment="left"),
        "polygon": lambda v: v.draw_polygon(polygon, "b", alpha=0.7),
        "mask": lambda v: v.draw_binary_mask(mask, color="c", text="t", alpha=0.6),
        "overlay": lambda v: v.overlay_instances(
            boxes=boxes, labels=["a", "b", "c"], assigned_colors=colours, alpha=0.4
        ),
        "masks": lambda v: v.overlay_instances(masks=[mask, [polygon.reshape(-1)]], assigned_colors=colours[:2]),
        "nothing": lambda v: v.overlay_instances(),
        "empty": lambda v: v.overlay_instances(boxes=[], labels=[]),
    }.items():
        seeded()
        out[name] = seen(draw(d2.Visualizer(picture(), scale=1.0)))
    out["sizes"] = [list(d2.Visualizer(picture(), scale=s).get_output().get_image().shape) for s in (0.5, 1.0, 2.3)]
    out["errors"] = [
        error_of(lambda: d2.Visualizer(picture()).overlay_instances(boxes=boxes, labels=["a"])),
        error_of(lambda: d2.Visualizer(picture()).draw_instance_predictions(3)),
    ]
    with folder() as at:
        d2.Visualizer(picture()).get_output().save(str(at / "x.png"))
        out["file"] = list(np.asarray(Image.open(at / "x.png")).shape)
    return out


class Writing(d2.Visualizer):
    """Remembers what it is to write, and where."""

    def draw_text(self, text, position, **style):
        style.pop("color", None)
        known = [[key, float(v) if isinstance(v, (int, float)) else str(v)] for key, v in sorted(style.items())]
        self.__dict__.setdefault("texts", []).append([text, *map(float, position), *known])
        return self.output


@case(
    "Visualizer",
    what="places and sizes of labels: of boxes, masks alone, segments; at borders, large and small",
    atol=1e-4,
)
def labels_of_drawings():
    out: dict = {}
    boxes = torch.tensor([[5.0, 5, 60, 50], [90, 70, 120, 95], [100, 10, 105, 14], [3, 3, 125, 90], [40, 60, 47, 95]])
    shapes = masks(boxes)
    for name, given in {
        "boxes": {"boxes": boxes},
        "masks": {"masks": shapes},
        "both": {"boxes": boxes, "masks": shapes},
    }.items():
        for scale in (1.0, 2.0):
            seeded()
            drawn = Writing(picture(), scale=scale)
            drawn.overlay_instances(labels=list("abcde"), **given)
            out[f"{name}_{scale}"] = drawn.texts
    seeded()
    with registered("fid_drawn"):
        drawn = Writing(picture(), metadata())
        labelled = np.zeros((HEIGHT, WIDTH), np.uint8)
        labelled[10:50, 20:90] = 1
        labelled[60:70, 10:20] = labelled[60:90, 50:120] = 2
        drawn.draw_sem_seg(labelled)
    return out | {"segments": drawn.texts}


@case(
    "Visualizer",
    what="colours drawn from the generator, names of labels, masks in all forms as polygons and areas",
    atol=1e-6,
)
def parts():
    colors, module = d2_module("utils.colormap"), d2_module("utils.visualizer")
    seeded()
    drawn = [
        [float(v) for v in colors.random_color(rgb=rgb, maximum=maximum)]
        for rgb in (True, False)
        for maximum in (1, 255)
    ]
    several = [[float(v) for v in colour] for colour in colors.random_colors(3, rgb=True)]
    mask = masks(torch.tensor([[30.0, 20, 110, 80]]))[0].numpy()
    generic = module.GenericMask(mask.astype(np.uint8), HEIGHT, WIDTH)
    labels = module._create_text_labels
    return {
        "colours": [*drawn, *several],
        "map": torch.as_tensor(colors.colormap(rgb=True)[::9].astype(np.float64)),
        "labels": [
            labels([0, 1], [0.5, 0.999], ["a", "b"]),
            labels([0, 0], None, ["a"], [0, 1]),
            labels([3], None, None),
        ],
        "mask": [generic.area(), generic.has_holes, [int(v) for v in generic.bbox()], len(generic.polygons)],
    }
