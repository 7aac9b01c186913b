"""Test-time augmentation of detectors: geometry, merging, a single view, Detectron2's numbers, the option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from d2_access import d2_module
from torch import nn

from elsa_det import d2, get_config
from elsa_det.data.shapes import SceneSpec, SetSpec, write_shapes
from elsa_det.engine.training import evaluate_only
from elsa_det.errors import UserError
from elsa_det.evaluation import DetectionTTA, evaluate_with_tta, with_tta
from elsa_det.evaluation.detection_tta import View

CONFIG = "quickstart/elsa_nano_mrcnn.py"
FIELDS = ("scores", "pred_classes")


def detector(*overrides: str, config: str = CONFIG) -> d2.GeneralizedRCNN:
    """A tiny detector whose weights are drawn wide enough for scores and boxes of their own."""
    cfg = get_config(config, ["model.backbone.bottom_up.embed_dim=16", "train.device=cpu", *overrides])
    torch.manual_seed(0)
    model = d2.instantiate(cfg.model)
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_score.weight", "predictor.weight", "objectness_logits.weight")):
            nn.init.normal_(parameter, std=0.2)
        elif name.endswith(("bbox_pred.weight", "anchor_deltas.weight")):
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def retinanet() -> nn.Module:
    model = detector(
        "model.backbone.out_channels=16",
        "model.backbone.top_block.in_channels=128",
        "model.head.conv_dims=[16]",
        "model.num_classes=5",
        "model.backbone.bottom_up.depths=[1,1,1,1]",
        "model.backbone.bottom_up.num_heads=[1,2,4,8]",
        config="coco/elsa_t_retinanet_1x.py",
    )
    nn.init.zeros_(model.head.cls_score.bias)
    return model


MODELS = {
    "mask": detector,
    "cascade": lambda: detector(config="quickstart/elsa_nano_cascade.py"),
    "box": lambda: detector("model.roi_heads.mask_in_features=null", "model.roi_heads.mask_head=null"),
    "retinanet": retinanet,
}


def picture(height: int, width: int) -> torch.Tensor:
    """A pattern that is neither symmetric nor periodic."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([(5 * x) % 256, (3 * y + x) % 256, (x * y // 3) % 256]).to(torch.uint8)


def resized(image: torch.Tensor, short: int, longest: int = 1333) -> torch.Tensor:
    """As the test loader resizes."""
    pixels = d2.transforms.AugInput(image.permute(1, 2, 0).numpy())
    d2.transforms.ResizeShortestEdge([short, short], longest)(pixels)
    return torch.from_numpy(pixels.image.transpose(2, 0, 1).copy())


def plain(model: nn.Module, entry: dict) -> d2.Instances:
    with torch.no_grad():
        return model([entry])[0]["instances"]


# Geometry -------------------------------------------------------------------------------------------------------------


def test_boxes_of_a_view_and_back():
    view = View(size=(20, 40), output_size=(10, 80), mirrored=False)
    boxes = torch.tensor([[4.0, 2.0, 10.0, 6.0]])
    assert view.boxes_to_output(boxes).tolist() == [[8.0, 1.0, 20.0, 3.0]]
    mirror = View(size=(20, 40), output_size=(10, 80), mirrored=True)
    assert mirror.boxes_to_output(boxes).tolist() == [[60.0, 1.0, 72.0, 3.0]]
    for each in (view, mirror):
        assert torch.equal(each.boxes_from_output(each.boxes_to_output(boxes)), boxes)
    assert boxes.tolist() == [[4.0, 2.0, 10.0, 6.0]], "given boxes are not changed"


def test_pixels_of_a_view():
    image = picture(6, 9)
    pixels = image.permute(1, 2, 0).numpy()
    assert torch.equal(View((6, 9), (6, 9), mirrored=False).of(pixels), image)
    assert torch.equal(View((6, 9), (6, 9), mirrored=True).of(pixels), image.flip(2))
    assert torch.equal(View((12, 18), (6, 9), mirrored=True).of(pixels), resized(image, 12).flip(2))


def test_sizes_of_the_views():
    augmented = DetectionTTA(detector(), min_sizes=[50, 100], max_size=150)
    views = augmented.views((64, 128), (640, 1280))
    assert [(v.size, v.mirrored) for v in views] == [
        ((50, 100), False),
        ((50, 100), True),
        ((75, 150), False),  # the long side limits it
        ((75, 150), True),
    ]
    assert {v.output_size for v in views} == {(640, 1280)}
    assert str(augmented) == "4 views (short side 50, 100; long side up to 150, each mirrored too)"
    assert str(DetectionTTA(detector(), min_sizes=[50], flip=False)) == "1 view (short side 50; long side up to 4000)"


# Merging, on made-up detections ---------------------------------------------------------------------------------------


class MadeUp(d2.GeneralizedRCNN):
    """Says what it was told for a view of a height and direction; ``given`` keeps the boxes of the masks asked for."""

    def __init__(self, answers: dict, masks: dict | None = None, topk: int = 100) -> None:
        nn.Module.__init__(self)
        self.answers, self.masks, self.given = answers, masks, {}
        self.proposal_generator = nn.Identity()
        self.roi_heads = nn.Module()
        self.roi_heads.mask_on = masks is not None
        self.roi_heads.box_predictor = nn.Module()
        self.roi_heads.box_predictor.test_nms_thresh = 0.5
        self.roi_heads.box_predictor.test_topk_per_image = topk

    def inference(self, inputs, detected_instances=None, do_postprocess=True):
        assert not do_postprocess
        image = inputs[0]["image"]
        view = (image.shape[1], bool(image[0, 0, 0] > image[0, 0, -1]))  # brighter on the right unless mirrored
        if detected_instances is not None:
            self.given[view] = detected_instances[0].pred_boxes.tensor
            detected_instances[0].pred_masks = self.masks[view].expand(len(detected_instances[0]), 1, 2, 2).clone()
            return detected_instances
        assert not self.roi_heads.mask_on, "boxes first"
        rows = torch.tensor(self.answers.get(view, [])).reshape(-1, 6)
        found = d2.Instances(tuple(image.shape[1:]), pred_boxes=d2.Boxes(rows[:, :4]), scores=rows[:, 4])
        found.pred_classes = rows[:, 5].long()
        return [found]


def ramp(height: int, width: int) -> torch.Tensor:
    return torch.linspace(0, 255, width).expand(3, height, width).to(torch.uint8)


def test_boxes_of_all_views_are_merged_by_class():
    answers = {
        (20, False): [[2, 2, 12, 12, 0.6, 1], [20, 4, 30, 14, 0.5, 0]],
        # the same box, seen in twice the size: better, and the lower-scored one goes; another class stays
        (40, False): [[4, 4, 24, 24, 0.9, 1], [4, 4, 24, 24, 0.3, 2]],
        # mirrored: 40 - 30 … 40 - 20, again the second of the first view
        (20, True): [[10, 4, 20, 14, 0.7, 0], [-3, -1, 4, 5, 0.2, 2]],
    }
    model = MadeUp(answers)
    found = DetectionTTA(model, min_sizes=[20, 40]).eval()([{"image": ramp(20, 40), "height": 10, "width": 20}])[0]
    instances = found["instances"]
    assert instances.image_size == (10, 20)
    assert instances.pred_classes.tolist() == [1, 0, 2, 2]
    assert instances.scores.tolist() == pytest.approx([0.9, 0.7, 0.3, 0.2])
    assert instances.pred_boxes.tensor.tolist() == [
        [1.0, 1.0, 6.0, 6.0],
        [10.0, 2.0, 15.0, 7.0],
        [1.0, 1.0, 6.0, 6.0],
        [18.0, 0.0, 20.0, 2.5],  # cut at the border
    ]
    assert not instances.has("pred_masks")
    few = DetectionTTA(MadeUp(answers, topk=2), min_sizes=[20, 40]).eval()([{"image": ramp(20, 40)}])[0]["instances"]
    assert few.pred_classes.tolist() == [1, 0]
    assert few.image_size == (20, 40), "that of the image where none is asked for"


def test_masks_are_averaged_over_the_views():
    answers = {(20, False): [[0, 0, 20, 20, 0.9, 1]], (20, True): [[0, 0, 10, 10, 0.8, 0]]}
    masks = {(20, False): torch.tensor([[0.9, 0.2], [0.4, 0.0]]), (20, True): torch.tensor([[0.4, 0.3], [0.4, 0.8]])}
    model = MadeUp(answers, masks)
    augmented = DetectionTTA(model, min_sizes=[20]).eval()
    pasted = {}
    augmented_masks = augmented._mean_masks

    def watch(*args):
        pasted["mean"] = augmented_masks(*args)
        return pasted["mean"]

    augmented._mean_masks = watch
    instances = augmented([{"image": ramp(20, 40)}])[0]["instances"]
    # plain, and the mirrored one turned back: (0.9 + 0.3) / 2, (0.2 + 0.4) / 2; (0.4 + 0.8) / 2, (0.0 + 0.4) / 2
    torch.testing.assert_close(pasted["mean"][0, 0], torch.tensor([[0.6, 0.3], [0.6, 0.2]]))
    assert instances.pred_masks.shape == (2, 20, 40)
    assert instances.pred_masks.dtype == torch.bool
    mask = instances.pred_masks[0]
    assert (bool(mask[10, 5]), bool(mask[10, 15]), bool(mask[10, 30])) == (True, False, False)
    # masks were asked for in the pixels of each view
    assert model.given[20, False].tolist() == [[0, 0, 20, 20], [30, 0, 40, 10]]
    assert model.given[20, True].tolist() == [[20, 0, 40, 20], [0, 0, 10, 10]]
    assert model.roi_heads.mask_on, "turned on again"


def test_nothing_found():
    masks = {(20, False): torch.zeros(2, 2), (20, True): torch.zeros(2, 2)}
    model = MadeUp({}, masks)
    instances = DetectionTTA(model, min_sizes=[20]).eval()([{"image": ramp(20, 40), "height": 5, "width": 10}])[0][
        "instances"
    ]
    assert len(instances) == 0
    assert instances.pred_masks.shape == (0, 5, 10)
    assert model.given == {}, "no masks to ask for"
    assert model.roi_heads.mask_on


class Dense(nn.Module):
    """A one-stage detector as seen from outside: in a view of height 20 a box that reaches over the border."""

    test_nms_thresh, max_detections_per_image, head_in_features = 0.5, 100, ["p3"]

    def preprocess_image(self, inputs):
        return d2.ImageList.from_tensors([entry["image"].float() for entry in inputs])

    def backbone(self, images):
        return {"p3": images, "p4": None}

    def head(self, features):
        return features[0]

    def forward_inference(self, images, features, predictions):
        assert features[0] is predictions
        height, width = images.image_sizes[0]
        found = d2.Instances((height, width), pred_boxes=d2.Boxes(torch.tensor([[-width / 4, 0, width / 4, height]])))
        found.scores, found.pred_classes = torch.tensor([height / 100]), torch.tensor([3])
        return [found]


def test_one_stage_detectors_have_boxes_only():
    instances = DetectionTTA(Dense(), min_sizes=[20, 40]).eval()([{"image": ramp(20, 40)}])[0]["instances"]
    assert not instances.has("pred_masks")
    assert instances.scores.tolist() == pytest.approx([0.4, 0.4])
    assert instances.pred_boxes.tensor.tolist() == [[0, 0, 10, 20], [30, 0, 40, 20]]


# Real models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(70, 90), (90, 64)])
@pytest.mark.parametrize("kind", MODELS)
def test_one_view_is_the_plain_result(kind, size):
    model, image = MODELS[kind](), picture(*size)
    entry = {"height": size[0] + 11, "width": size[1] + 5}
    expected = plain(model, {"image": resized(image, 96, 120), **entry})
    found = DetectionTTA(model, min_sizes=[96], max_size=120, flip=False)([{"image": image, **entry}])[0]["instances"]
    assert len(expected) > 20
    assert set(found.get_fields()) == set(expected.get_fields())
    for name in FIELDS:
        assert torch.equal(found.get(name), expected.get(name))
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert expected.has("pred_masks") == (kind in ("mask", "cascade"))
    if expected.has("pred_masks"):
        assert expected.pred_masks.any()
        assert torch.equal(found.pred_masks, expected.pred_masks)
    assert found.image_size == expected.image_size


@pytest.mark.parametrize("kind", ["mask", "cascade"])
def test_a_mirrored_image_has_the_mirrored_result(kind):
    model, image = MODELS[kind](), picture(64, 96)
    augmented = DetectionTTA(model, min_sizes=[64])
    found = augmented([{"image": image}])[0]["instances"]
    turned = augmented([{"image": image.flip(2)}])[0]["instances"]
    assert len(found) > 20
    torch.testing.assert_close(turned.scores, found.scores)
    assert torch.equal(turned.pred_classes, found.pred_classes)
    left, top, right, bottom = turned.pred_boxes.tensor.unbind(1)
    torch.testing.assert_close(torch.stack([96 - right, top, 96 - left, bottom], 1), found.pred_boxes.tensor)
    assert (turned.pred_masks.flip(2) != found.pred_masks).float().mean() < 1e-4
    alone = plain(model, {"image": image})
    assert not torch.equal(alone.scores, found.scores), "the mirror image adds to it"


def test_models_keep_their_mode():
    model = detector()
    augmented = DetectionTTA(model, min_sizes=[64])
    with d2.inference_context(augmented):
        assert not model.training
    assert not model.training
    model.train()
    augmented = DetectionTTA(model, min_sizes=[64])
    with pytest.raises(RuntimeError, match="call eval"):
        augmented([{"image": picture(64, 64)}])
    with d2.inference_context(augmented):
        assert not model.training
    assert model.training


@pytest.mark.skipif(d2.PROVIDER != d2.UPSTREAM, reason="Detectron2 itself is compared with")
@pytest.mark.parametrize("agnostic", [True, False])
def test_detectron2_says_the_same(agnostic):
    classes = 1 if agnostic else 6
    model, image = detector(f"model.roi_heads.mask_head.num_classes={classes}"), picture(75, 101)
    cfg = d2_module("config").get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = (64, 100, 128), 180, True
    entry = {"image": image, "height": 75, "width": 101}
    # A view at a time, as ours: views of several sizes in a batch are padded, which changes what is seen at borders.
    theirs = d2_module("modeling").GeneralizedRCNNWithTTA(cfg, model, batch_size=1)
    with torch.no_grad():
        expected = theirs([dict(entry)])[0]["instances"]
    found = DetectionTTA(model, min_sizes=[64, 100, 128], max_size=180)([entry])[0]["instances"]
    assert len(found) == len(expected) == 100
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-5, atol=1e-3)
    assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-4


def test_recorded_numbers():
    """Of Detectron2's ``GeneralizedRCNNWithTTA`` with ``batch_size=1`` on the same model and image."""
    recorded = {
        0: ([0.0, 39.458, 12.191, 54.628], 0.998006, 2, 122),
        1: ([0.204, 45.848, 12.527, 60.486], 0.997854, 2, 150),
        2: ([0.0, 33.585, 13.058, 48.671], 0.996605, 2, 130),
        10: ([0.0, 18.907, 13.212, 33.827], 0.989038, 2, 142),
        40: ([4.371, 40.734, 22.604, 71.203], 0.943992, 2, 371),
        99: ([77.767, 5.586, 100.275, 22.195], 0.862039, 4, 352),
    }
    model, image = detector("model.roi_heads.mask_head.num_classes=6"), picture(75, 101)
    found = DetectionTTA(model, min_sizes=[64, 100, 128], max_size=180)([{"image": image}])[0]["instances"]
    assert len(found) == 100
    for i, (box, score, category, area) in recorded.items():
        assert found.pred_boxes.tensor[i].tolist() == pytest.approx(box, abs=2e-3)
        assert found.scores[i].item() == pytest.approx(score, abs=2e-6)
        assert found.pred_classes[i] == category
        assert found.pred_masks[i].sum() == area


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_sizes": []}, r"sizes \[\] is empty; give different positive"),
        ({"min_sizes": [800, 0]}, r"sizes \[800, 0\] has 0"),
        ({"min_sizes": [64.5]}, "has 64.5"),
        ({"min_sizes": [64, 64]}, "repeats a size"),
        ({"min_sizes": [64], "max_size": -1}, "has -1"),
    ],
)
def test_sizes_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        DetectionTTA(Dense(), **options)


def test_models_that_cannot_be():
    with pytest.raises(UserError, match=r"is for GeneralizedRCNN and one-stage detectors, the model is a Linear: set"):
        DetectionTTA(nn.Linear(1, 1), min_sizes=[64])
    model = detector()
    model.proposal_generator, model.roi_heads.keypoint_on = None, True
    with pytest.raises(UserError, match="given proposals are not augmented; its keypoints would not be averaged"):
        DetectionTTA(model, min_sizes=[64])


# The option of the evaluation -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A config on a small set with the weights of :func:`detector`."""
    folder = tmp_path_factory.mktemp("tta")
    write_shapes(folder / "set", SetSpec(train=1, val=3, scene=SceneSpec(image_size=64, max_object=40)))
    weights = folder / "model.pth"
    torch.save({"model": detector().state_dict()}, weights)
    return folder, [
        "model.backbone.bottom_up.embed_dim=16",
        f"dataset.test.json_file={folder}/set/annotations/instances_val.json",
        f"dataset.test.image_root={folder}/set/val",
        f"train.init_checkpoint={weights}",
        "train.device=cpu",
    ]


def configured(trained, output: Path, *overrides: str):
    cfg = get_config("quickstart/elsa_nano_mrcnn.py", [*trained[1], f"train.output_dir={output}", *overrides])
    cfg.dataloader.test.mapper.augmentations = [
        d2.LazyCall(d2.transforms.ResizeShortestEdge)(short_edge_length=96, max_size=128)
    ]
    return cfg


def predictions(folder: Path):
    return json.loads((folder / "coco_instances_results.json").read_text())


def test_evaluation_reports_both_modes(trained, tmp_path):
    cfg = configured(trained, tmp_path, "train.tta.enabled=True", "train.tta.min_sizes=[96]", "train.tta.flip=False")
    results = evaluate_only(cfg)
    assert set(results) == {"bbox", "segm", "bbox_TTA", "segm_TTA"}
    assert results["bbox"]["AP"] == results["bbox_TTA"]["AP"]
    assert len(predictions(tmp_path)) > 60
    assert predictions(tmp_path) == predictions(tmp_path / "inference_TTA"), "one view of the loader's size"
    assert cfg.dataloader.evaluator.output_dir == str(tmp_path), "the config is as it was"
    assert len(cfg.dataloader.test.mapper.augmentations) == 1


def test_more_views_change_the_augmented_results_only(trained, tmp_path):
    cfg = configured(trained, tmp_path, "train.tta.enabled=True", "train.tta.min_sizes=[64,96]")
    evaluate_only(cfg)
    once = predictions(tmp_path)
    evaluate_only(configured(trained, tmp_path / "off"))
    assert predictions(tmp_path / "off") == once
    assert not (tmp_path / "off" / "inference_TTA").exists()
    assert predictions(tmp_path / "inference_TTA") != once


def test_options_are_checked_before_the_work(trained, tmp_path):
    def check(*overrides, model=None):
        return with_tta(configured(trained, tmp_path, *overrides), model or detector())

    assert check() is None
    cfg = configured(trained, tmp_path)
    cfg.train.pop("tta")  # saved by an earlier version
    assert with_tta(cfg, detector()) is None
    assert evaluate_with_tta(cfg, detector()) == {}
    assert check("train.tta.enabled=True").min_sizes == [400, 500, 600, 700, 800, 900, 1000, 1100, 1200]
    with pytest.raises(UserError, match=r"train.tta has no scales: there are enabled, min_sizes, max_size, flip"):
        check("train.tta.enabled=True", "+train.tta.scales=[1]")
    with pytest.raises(UserError, match="the model is a Linear: set train.tta.enabled=False"):
        check("train.tta.enabled=True", model=nn.Linear(1, 1))
    cfg = configured(trained, tmp_path, "train.tta.enabled=True")
    cfg.dataloader.pop("evaluator")
    with pytest.raises(UserError, match="the config has no dataloader.evaluator"):
        with_tta(cfg, detector())
