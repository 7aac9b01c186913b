"""Drawing: pixels whose color can be worked out, places of labels, masks in all their forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from d2_access import d2_module
from matplotlib.colors import to_rgb
from PIL import Image
from pycocotools import mask as mask_util

from elsa_det import d2

module = d2_module("utils.visualizer")
GenericMask = module.GenericMask
GREY = 100
HEIGHT, WIDTH = 120, 160


def picture(height=HEIGHT, width=WIDTH):
    return np.full((height, width, 3), GREY, dtype=np.uint8)


@pytest.fixture
def metadata():
    name = "drawn"
    yield d2.MetadataCatalog.get(name).set(
        thing_classes=["cat", "dog"],
        thing_colors=[(255, 0, 0), (0, 0, 255)],
        stuff_classes=["sky", "sea"],
        stuff_colors=[(0, 255, 0), (0, 0, 255)],
    )
    d2.MetadataCatalog.remove(name)


class Recorder(d2.Visualizer):
    """Writes nothing, but remembers what and where."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.texts = []

    def draw_text(self, text, position, **style):
        self.texts.append((text, *(float(v) for v in position), style.get("horizontal_alignment", "center")))
        self.sizes = [*getattr(self, "sizes", []), style.get("font_size")]
        return self.output


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def instances(*boxes, classes=None, masks=True):
    result = d2.Instances((HEIGHT, WIDTH))
    result.pred_boxes = d2.Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.linspace(0.5, 1, len(boxes))
    result.pred_classes = torch.tensor(classes or [0] * len(boxes), dtype=torch.int64)
    if masks:
        result.pred_masks = torch.tensor(np.array([rectangle(*box) for box in boxes]).reshape(-1, HEIGHT, WIDTH))
    return result


def blend(color, alpha):
    return (np.asarray(color) * alpha * 255 + GREY * (1 - alpha)).tolist()


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.5])
def test_size_of_the_output(scale):
    image = d2.Visualizer(picture(), scale=scale).get_output().get_image()
    assert image.shape == (round(HEIGHT * scale), round(WIDTH * scale), 3)
    assert image.dtype == np.uint8
    assert (image == GREY).all()


def test_output_is_saved(tmp_path):
    d2.Visualizer(picture()).get_output().save(str(tmp_path / "a.png"))
    assert Image.open(tmp_path / "a.png").size == (WIDTH, HEIGHT)


def test_values_out_of_range_are_clipped():
    image = np.array([[[-10.0, 300.0, 20.7]]])
    assert d2.Visualizer(image).img.tolist() == [[[0, 255, 20]]]


def test_polygon_is_filled_and_outlined():
    corners = np.array([[20, 20], [100, 20], [100, 80], [20, 80]])
    image = d2.Visualizer(picture()).draw_polygon(corners, "r", edge_color="b", alpha=0.25).get_image()
    assert image[50, 60] == pytest.approx(blend(to_rgb("r"), 0.25), abs=1)
    assert image[50, 20, 2] > 150  # the outline
    assert (image[10, 10] == GREY).all()


def test_edge_is_darker_on_an_opaque_filling():
    corners = np.array([[20, 20], [100, 20], [100, 80], [20, 80]])
    opaque = d2.Visualizer(picture()).draw_polygon(corners, (1.0, 0.0, 0.0), alpha=0.9)
    clear = d2.Visualizer(picture()).draw_polygon(corners, (1.0, 0.0, 0.0), alpha=0.8)
    edges = [output.ax.patches[0].get_edgecolor() for output in (opaque, clear)]
    assert edges[0] == pytest.approx((0.3, 0, 0, 1))
    assert edges[1] == pytest.approx((1, 0, 0, 1))


def test_box_is_an_outline():
    image = d2.Visualizer(picture()).draw_box((20, 20, 100, 80), edge_color="r", alpha=1.0).get_image()
    assert (image[50, 60] == GREY).all()
    assert image[50, 20].tolist() == [255, 0, 0]


def test_text_is_light_on_a_dark_plate():
    output = d2.Visualizer(picture()).draw_text("word", (80, 40), color=(0, 0, 0.3), font_size=20)
    text = output.ax.texts[0]
    assert text.get_color() == pytest.approx((0.2, 0.2, 0.8))
    assert (text.get_size(), text.get_position()) == (20, (80, 40))
    image = output.get_image()
    assert image.min() < 40
    assert image.max() > 190


@pytest.mark.parametrize(
    ("height", "width", "scale", "size"), [(100, 100, 1.0, 10), (900, 1600, 1.0, 13), (100, 100, 2.0, 5)]
)
def test_font_size_follows_the_picture(height, width, scale, size):
    output = d2.Visualizer(picture(height, width), scale=scale, font_size_scale=2.0).draw_text("a", (5, 5))
    assert output.ax.texts[0].get_size() == size * 2 * scale


def test_predictions(metadata):
    np.random.seed(0)
    drawn = Recorder(picture(), metadata)
    output = drawn.draw_instance_predictions(instances((20, 20, 90, 90), (100, 5, 130, 15), classes=[1, 0]))
    # The label of the large one at its corner, that of the small one under it.
    assert drawn.texts == [("dog 50%", 20.0, 20.0, "left"), ("cat 100%", 100.0, 15.0, "left")]
    assert drawn.sizes == pytest.approx([10.0, 8.2605], abs=1e-3)
    color = d2_module("utils.colormap").colormap(rgb=True, maximum=1)[44]
    assert output.get_image()[50, 50] == pytest.approx(blend(color, 0.5), abs=1)


def test_labels_at_the_bottom_go_right():
    drawn = Recorder(picture())
    drawn.overlay_instances(boxes=np.array([[20, 110, 40, 118]]), labels=["a"])
    assert drawn.texts == [("a", 40.0, 110.0, "left")]


def test_labels_without_boxes_are_in_the_middle():
    drawn = Recorder(picture())
    drawn.overlay_instances(masks=[rectangle(20, 20, 101, 81), rectangle(0, 0, 0, 0)], labels=["a", "empty"])
    assert drawn.texts == [("a", 60.0, 50.0, "center")]


def test_class_colors(metadata):
    visualizer = d2.Visualizer(picture(), metadata, instance_mode=d2.ColorMode.SEGMENTATION)
    output = visualizer.draw_instance_predictions(instances((20, 20, 90, 90), classes=[1]), jittering=False)
    assert output.get_image()[80, 80] == pytest.approx(blend((0, 0, 1), 0.8), abs=1)

    np.random.seed(0)
    visualizer = d2.Visualizer(picture(), metadata, instance_mode=d2.ColorMode.SEGMENTATION)
    output = visualizer.draw_instance_predictions(instances((20, 20, 90, 90), classes=[1]))
    shift = np.array([0.5488135, 0.71518937, 0.60276338])  # np.random.rand(3)
    color = np.clip((0, 0, 1) + shift / np.linalg.norm(shift) / 2, 0, 1)
    assert output.get_image()[80, 80] == pytest.approx(blend(color, 0.8), abs=1)


@pytest.mark.parametrize("masks", [True, False])
def test_grey_outside_of_the_masks(masks):
    image = picture()
    image[..., 0] = 220
    np.random.seed(0)
    visualizer = d2.Visualizer(image, instance_mode=d2.ColorMode.IMAGE_BW)
    drawn = visualizer.draw_instance_predictions(instances((20, 20, 90, 90), masks=masks)).get_image()
    assert drawn[110, 150].tolist() == [140, 140, 140]
    if masks:
        color = d2_module("utils.colormap").colormap(rgb=True)[44]
        assert drawn[80, 80] == pytest.approx((color * 0.3 + image[80, 80] * 0.7).tolist(), abs=1)
    else:
        assert drawn[80, 80].tolist() == [140, 140, 140]


@pytest.mark.parametrize("masks", [True, False])
def test_no_predictions(metadata, masks):
    for mode in d2.ColorMode:
        visualizer = d2.Visualizer(picture(), metadata, instance_mode=mode)
        assert (visualizer.draw_instance_predictions(instances(masks=masks)).get_image() == GREY).all()


def test_annotations(metadata):
    drawn = Recorder(picture(), metadata)
    crowd = mask_util.encode(np.asfortranarray(rectangle(100, 20, 150, 100).astype(np.uint8)))
    found = {"bbox_mode": d2.BoxMode.XYWH_ABS}
    polygon = [[20, 20, 80, 20, 80, 90, 20, 90]]
    annotations = [
        {**found, "bbox": [100, 20, 50, 80], "category_id": 0, "iscrowd": 1, "segmentation": crowd},
        {**found, "bbox": [20, 20, 60, 70], "category_id": 1, "segmentation": polygon},
    ]
    image = drawn.draw_dataset_dict({"annotations": annotations}).get_image()
    assert drawn.texts == [("dog", 20.0, 20.0, "left"), ("cat|crowd", 100.0, 20.0, "left")]
    assert (image[110, 50] == GREY).all()
    assert not (image[50, 50] == GREY).all()
    assert not (image[60, 125] == GREY).all()


def test_semantic_segmentation(metadata, tmp_path):
    labels = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    labels[:60] = 0
    labels[60:110, :100] = 1
    drawn = Recorder(picture(), metadata)
    image = drawn.draw_sem_seg(torch.from_numpy(labels), alpha=0.6).get_image()
    assert drawn.texts == [("sky", 79.5, 29.5, "center"), ("sea", 49.5, 84.5, "center")]
    assert image[30, 30] == pytest.approx(blend((0, 1, 0), 0.6), abs=1)
    assert image[80, 30] == pytest.approx(blend((0, 0, 1), 0.6), abs=1)
    assert (image[115, 150] == GREY).all()

    Image.fromarray(labels).save(tmp_path / "labels.png")
    by_name = d2.Visualizer(picture(), metadata).draw_dataset_dict({"sem_seg_file_name": str(tmp_path / "labels.png")})
    given = d2.Visualizer(picture(), metadata).draw_dataset_dict({"sem_seg": labels})
    assert np.array_equal(by_name.get_image(), given.get_image())
    assert given.get_image()[80, 20] == pytest.approx(blend((0, 0, 1), 0.5), abs=1)


def test_mask_with_a_hole():
    mask = rectangle(20, 20, 100, 100)
    mask[50:70, 50:70] = False
    image = d2.Visualizer(picture()).draw_binary_mask(mask, color="r", alpha=0.5).get_image()
    assert image[30, 30] == pytest.approx(blend((1, 0, 0), 0.5), abs=1)
    assert (image[60, 60] == GREY).all()


def test_small_parts_of_a_mask_are_left_out():
    mask = rectangle(20, 20, 80, 80) | rectangle(140, 100, 143, 103)
    drawn = Recorder(picture())
    image = drawn.draw_binary_mask(mask, color="r", text="a").get_image()
    assert (image[101, 141] == GREY).all()
    assert drawn.texts == [("a", 49.5, 49.5, "center")]
    drawn = Recorder(picture())
    drawn.draw_binary_mask(rectangle(140, 100, 143, 103), text="a")
    assert drawn.texts == []


def test_numbers_must_agree():
    visualizer = d2.Visualizer(picture())
    boxes = np.array([[0, 0, 10, 10]])
    with pytest.raises((ValueError, AssertionError)):
        visualizer.overlay_instances(boxes=boxes, masks=[rectangle(0, 0, 9, 9)] * 2)
    with pytest.raises((ValueError, AssertionError)):
        visualizer.overlay_instances(boxes=boxes, labels=["a", "b"])


@pytest.mark.skipif(d2.PROVIDER == d2.UPSTREAM, reason="Detectron2 draws these")
def test_what_is_not_drawn_says_so():
    visualizer = d2.Visualizer(picture())
    with pytest.raises(NotImplementedError, match="keypoints"):
        visualizer.overlay_instances(keypoints=np.zeros((1, 17, 3)))
    with pytest.raises(NotImplementedError, match="Rotated"):
        visualizer.overlay_instances(boxes=np.zeros((1, 5)))


@pytest.mark.parametrize(
    ("arguments", "labels"),
    [
        (([0, 1], None, ["cat", "dog"]), ["cat", "dog"]),
        (([0, 1], [0.5, 0.999], ["cat", "dog"]), ["cat 50%", "dog 100%"]),
        (([3], [0.5], None), ["3 50%"]),
        (([3], None, []), ["3"]),
        ((None, [0.123], ["cat"]), ["12%"]),
        (([0, 0], None, ["cat"], [0, 1]), ["cat", "cat|crowd"]),
        ((None, None, None, [1]), None),
        (([], [], ["cat"]), []),
    ],
)
def test_labels(arguments, labels):
    assert module._create_text_labels(*arguments) == labels


def test_mask_forms():
    polygon = [20.0, 30.0, 60.0, 30.0, 60.0, 50.0, 20.0, 50.0]
    bitmap = rectangle(20, 30, 60, 50).astype(np.uint8)
    rle = mask_util.encode(np.asfortranarray(bitmap))
    # by columns: 20 empty ones and 30 pixels, then 20 set and 100 not, 40 times
    counts = [20 * HEIGHT + 30, *([20, 100] * 39), 20, HEIGHT * (WIDTH - 60) + 70]
    forms = [bitmap, bitmap.astype(bool), [polygon], rle, {"size": [HEIGHT, WIDTH], "counts": counts}]
    for form in forms:
        mask = GenericMask(form, HEIGHT, WIDTH)
        assert np.array_equal(mask.mask, bitmap)
        assert mask.area() == 800
        assert not mask.has_holes
    assert GenericMask([polygon], HEIGHT, WIDTH).bbox().tolist() == [20, 30, 60, 50]
    # outlines go through the middles of pixels
    assert GenericMask(bitmap, HEIGHT, WIDTH).polygons[0].reshape(-1, 2).min(axis=0).tolist() == [20.5, 30.5]
    assert GenericMask(bitmap, HEIGHT, WIDTH).polygons[0].reshape(-1, 2).max(axis=0).tolist() == [59.5, 49.5]


def test_mask_of_nothing():
    mask = GenericMask(rectangle(0, 0, 0, 0), HEIGHT, WIDTH)
    assert (mask.polygons, mask.has_holes, mask.area()) == ([], False, 0)


@pytest.mark.parametrize("bad", [np.zeros((5, 5)), {"size": [5, 5], "counts": [25]}, "mask"])
def test_what_is_no_mask(bad):
    with pytest.raises((ValueError, TypeError, AssertionError)):
        GenericMask(bad, HEIGHT, WIDTH)
