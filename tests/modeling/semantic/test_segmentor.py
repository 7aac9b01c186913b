"""The segmentor: losses, results, what it refuses, and its configs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from segmentor_cases import TINY, segmentor_config

from elsa_det.d2 import (
    BACKBONE_REGISTRY,
    FPN,
    META_ARCH_REGISTRY,
    PROVIDER,
    SEM_SEG_HEADS_REGISTRY,
    UPSTREAM,
    LazyConfig,
    ShapeSpec,
    instantiate,
)
from elsa_det.errors import UserError
from elsa_det.modeling import ELSASwin, FCNHead, Segmentor, SemanticFPNHead, UPerHead, add_segmentor_config
from elsa_det.modeling.semantic import segmentation_loss

CLASSES = 5


def config(name="upernet", **backbone):
    """A config of ``configs/common/models`` at a size for tests."""
    cfg = segmentor_config(name, **{**TINY, **backbone})
    cfg.model.decode_head.num_classes = CLASSES
    cfg.model.decode_head.channels = 32
    if name == "upernet":
        cfg.model.auxiliary_head.channels = 16
    return cfg


def segmentor(name="upernet", seed=0, **changes):
    torch.manual_seed(seed)
    cfg = config(name)
    for key, value in changes.items():
        OmegaConf.update(cfg, f"model.{key}", value)
    return instantiate(cfg.model)


def sample(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (height, width), generator=generator)
    labels[: height // 3, : width // 2] = 255
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": image, "sem_seg": labels}


def test_loss_averages_over_valid_pixels_or_all():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, CLASSES, 3, 4, generator=generator)
    target = torch.randint(0, CLASSES, (2, 6, 8), generator=generator)
    target[0, :4] = 255
    enlarged = F.interpolate(logits, size=(6, 8), mode="bilinear", align_corners=False)
    probability = enlarged.softmax(1).movedim(1, -1)
    each = -torch.stack([p[t].log() for p, t in zip(probability.reshape(-1, CLASSES), target.flatten()) if t != 255])
    torch.testing.assert_close(segmentation_loss(logits, target), each.mean())
    torch.testing.assert_close(segmentation_loss(logits, target, average_over_valid=False), each.sum() / 96)
    assert len(each) == 64
    shifted = torch.where(target == 255, -1, target)
    torch.testing.assert_close(segmentation_loss(logits, shifted, ignore_label=-1), each.mean())


@pytest.mark.parametrize("average_over_valid", [True, False])
def test_batch_without_a_valid_pixel_has_no_loss(average_over_valid):
    logits = torch.randn(1, CLASSES, 3, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 6, 8), 255), average_over_valid=average_over_valid)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_training_pads_images_with_zeros_and_labels_with_the_ignored_one():
    model = segmentor().eval()  # no dropout, running statistics: the same numbers again by hand
    inputs = [sample(40, 52), sample(33, 60, seed=1)]
    images, targets = torch.zeros(2, 3, 40, 60), torch.full((2, 40, 60), 255)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    for i, one in enumerate(inputs):
        height, width = one["sem_seg"].shape
        images[i, :, :height, :width] = (one["image"] - mean) / std
        targets[i, :height, :width] = one["sem_seg"]
    features = model.backbone(images)
    losses = model.losses(inputs)
    assert set(losses) == {"loss_sem_seg", "loss_aux"}
    torch.testing.assert_close(losses["loss_sem_seg"], segmentation_loss(model.decode_head(features), targets))
    torch.testing.assert_close(losses["loss_aux"], 0.4 * segmentation_loss(model.auxiliary_head(features), targets))


@pytest.mark.parametrize("name", ["upernet", "semantic_fpn"])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_parameter_trains(name, batch):
    model = segmentor(name).train()
    losses = model([sample(33, 47, seed=i) for i in range(batch)])
    assert set(losses) == ({"loss_sem_seg", "loss_aux"} if name == "upernet" else {"loss_sem_seg"})
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@torch.no_grad()
def test_labels_are_the_best_logits_at_the_asked_size():
    model = segmentor(return_logits=True).eval()
    inputs = sample(45, 61)
    whole = model.predict_logits(model.normalise(inputs)[None])
    assert whole.shape == (1, CLASSES, 12, 16)
    at_input = F.interpolate(whole, size=(45, 61), mode="bilinear", align_corners=False)
    for size in ((45, 61), (100, 70)):
        wanted = {} if size == (45, 61) else {"height": size[0], "width": size[1]}
        (result,) = model([{**inputs, **wanted}])
        expected = F.interpolate(at_input, size=size, mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(result["sem_seg"], expected, rtol=0, atol=1e-5)
        assert torch.equal(result["sem_seg_labels"], result["sem_seg"].argmax(0))
    model.return_logits = False
    (result,) = model([inputs])
    assert list(result) == ["sem_seg_labels"]
    assert torch.equal(result["sem_seg_labels"], at_input[0].argmax(0))


@torch.no_grad()
def test_a_result_does_not_depend_on_the_rest_of_the_batch():
    model = segmentor(return_logits=True).eval()
    inputs = [sample(45, 61), sample(33, 50, seed=1), sample(45, 61, seed=2) | {"height": 20, "width": 30}]
    together = model(inputs)
    for got, one in zip(together, inputs):
        torch.testing.assert_close(got["sem_seg"], model([one])[0]["sem_seg"], rtol=0, atol=1e-5)
    assert [tuple(r["sem_seg_labels"].shape) for r in together] == [(45, 61), (33, 50), (20, 30)]
    assert model([]) == []


@torch.no_grad()
def test_backbone_that_needs_padding():
    """A pyramid takes multiples of 32 pixels: the padding is cut off again."""
    fpn = FPN(ELSASwin(**TINY), ["p0", "p1", "p2", "p3"], 16)
    head = UPerHead(input_shape=fpn.output_shape(), channels=8, num_classes=CLASSES)
    model = Segmentor(backbone=fpn, decode_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3).eval()
    assert model.predict_logits(torch.randn(2, 3, 45, 61)).shape == (2, CLASSES, 12, 16)
    assert model([sample(45, 61)])[0]["sem_seg_labels"].shape == (45, 61)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sem_seg": torch.full((16, 20), 7)},
            r"a/b.png: label 7 is neither one of the 5 classes, 0..4, nor the ignored one, 255.*num_classes",
        ),
        ({"sem_seg": torch.full((16, 20), -1)}, "label -1"),
        ({"sem_seg": torch.zeros(16, 21).long()}, r"a/b.png: the labels are \(16, 21\), the image is \(16, 20\)"),
        ({"sem_seg": torch.zeros(1, 16, 20).long()}, r"the labels are \(1, 16, 20\)"),
        ({"sem_seg": torch.zeros(16, 20)}, "labels must be integers, got torch.float32"),
        ({"image": torch.zeros(1, 16, 20)}, r"a/b.png: the image must be \(3, height, width\), got \(1, 16, 20\)"),
    ],
)
def test_inputs_that_cannot_be_used(change, message):
    with pytest.raises(UserError, match=message):
        segmentor().train()([{**sample(16, 20), "file_name": "a/b.png", **change}])


def test_training_without_labels():
    with pytest.raises(UserError, match=r"training needs labels, 'sem_seg', and there are only \['image'\]"):
        segmentor().train()([{"image": torch.zeros(3, 16, 20)}])


def test_uint8_labels_are_fine():
    inputs = sample(16, 20)
    model = segmentor().eval()
    expected = model.losses([inputs])["loss_sem_seg"]
    assert torch.equal(
        model.losses([{**inputs, "sem_seg": inputs["sem_seg"].to(torch.uint8)}])["loss_sem_seg"], expected
    )


def test_parts_that_do_not_fit():
    backbone = ELSASwin(**TINY)
    statistics = dict(pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
    head = UPerHead([8, 16, 32, 64], 8, num_classes=CLASSES)
    with pytest.raises(ValueError, match="decode_head was made for 9 channels of p0, the backbone gives 8"):
        Segmentor(backbone=backbone, decode_head=UPerHead([9, 16, 32, 64], 8, num_classes=2), **statistics)
    with pytest.raises(ValueError, match=r"auxiliary_head takes the map 'p2', the backbone gives \['p0', 'p1'\]"):
        Segmentor(
            backbone=ELSASwin(**TINY, out_indices=[0, 1]),
            decode_head=UPerHead([8, 16], 8, num_classes=CLASSES),
            auxiliary_head=FCNHead(32, 8, num_classes=CLASSES),
            **statistics,
        )
    with pytest.raises(ValueError, match="auxiliary_head has num_classes=6, decode_head has 5"):
        Segmentor(backbone=backbone, decode_head=head, auxiliary_head=FCNHead(32, 8, num_classes=6), **statistics)
    with pytest.raises(ValueError, match="auxiliary_head has ignore_label=-1, decode_head has 255"):
        Segmentor(
            backbone=backbone,
            decode_head=head,
            auxiliary_head=FCNHead(32, 8, num_classes=CLASSES, ignore_label=-1),
            **statistics,
        )


@pytest.mark.parametrize("name", ["upernet", "semantic_fpn"])
def test_config_has_one_place_for_each_number_and_survives_saving(name, tmp_path):
    cfg = config(name, drop_path_rate=0.3, frozen_stages=2)
    cfg.model.decode_head.num_classes = 7
    cfg.model.decode_head.ignore_label = 99
    cfg.model.decode_head.average_over_valid = False
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    model = instantiate(LazyConfig.load(str(tmp_path / "config.yaml")).model)
    heads = [model.decode_head, model.auxiliary_head] if name == "upernet" else [model.decode_head]
    assert isinstance(heads[0], {"upernet": UPerHead, "semantic_fpn": SemanticFPNHead}[name])
    for head in heads:
        assert (head.num_classes, head.ignore_label, head.average_over_valid) == (7, 99, False)
        assert head.predictor.out_channels == 7
    frozen = {
        n.split(".")[0] + "." + n.split(".")[1] for n, p in model.backbone.named_parameters() if not p.requires_grad
    }
    assert frozen == {"patch_embed.proj", "patch_embed.norm", "layers.0", "layers.1"}
    losses = model.train()([sample(32, 32) | {"sem_seg": torch.zeros(32, 32).long()}] * 2)
    sum(losses.values()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_registered_builders():
    cfg = SimpleNamespace(
        INPUT=SimpleNamespace(FORMAT="BGR"),
        MODEL=SimpleNamespace(
            BACKBONE=SimpleNamespace(NAME="build_elsa_swin_backbone"),
            SEM_SEG_HEAD=SimpleNamespace(NAME="build_uper_head", NUM_CLASSES=CLASSES, IGNORE_VALUE=200),
            PIXEL_MEAN=[1.0, 2.0, 3.0],
            PIXEL_STD=[4.0, 5.0, 6.0],
        ),
    )

    class Node(SimpleNamespace):
        """As much of a CfgNode as the builders need."""

        def __init__(self, entries=()):
            super().__init__(**dict(entries))

        def items(self):
            return vars(self).items()

    root = Node({"INPUT": cfg.INPUT, "MODEL": cfg.MODEL})
    add_segmentor_config(root)
    root.MODEL.ELSA_SWIN = Node({key.upper(): value for key, value in TINY.items()})
    root.MODEL.SEGMENTOR.CHANNELS, root.MODEL.SEGMENTOR.AUXILIARY.CHANNELS = 32, 8
    assert "build_elsa_swin_backbone" in BACKBONE_REGISTRY
    model = META_ARCH_REGISTRY.get("build_segmentor")(root)
    assert isinstance(model, Segmentor)
    assert isinstance(model.decode_head, UPerHead)
    assert model.input_format == "BGR"
    assert model.auxiliary_head.loss_weight == 0.4
    assert (model.num_classes, model.ignore_label, model.auxiliary_head.ignore_label) == (CLASSES, 200, 200)
    assert model.pixel_std.flatten().tolist() == [4, 5, 6]
    root.MODEL.SEM_SEG_HEAD.NAME = "build_semantic_fpn_head"
    root.MODEL.SEGMENTOR.AUXILIARY.ENABLED = False
    model = META_ARCH_REGISTRY.get("build_segmentor")(root)
    assert isinstance(model.decode_head, SemanticFPNHead)
    assert model.auxiliary_head is None
    head = SEM_SEG_HEADS_REGISTRY.get("build_fcn_head")(root, {"p2": ShapeSpec(channels=32, stride=16)})
    assert isinstance(head, FCNHead)


def test_registered_builders_with_yacs():
    if PROVIDER != UPSTREAM:
        pytest.skip("d2lite has no yacs configs")
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from elsa_det.modeling import add_elsa_config

    cfg = get_cfg()
    add_elsa_config(cfg)
    add_segmentor_config(cfg)
    cfg.merge_from_list(
        ["MODEL.META_ARCHITECTURE", "build_segmentor", "MODEL.BACKBONE.NAME", "build_elsa_swin_backbone"]
        + ["MODEL.SEM_SEG_HEAD.NAME", "build_uper_head", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES]
        + ["MODEL.ELSA_SWIN.EMBED_DIM", 8, "MODEL.ELSA_SWIN.DEPTHS", [1, 1, 1, 1]]
        + ["MODEL.ELSA_SWIN.NUM_HEADS", [1, 2, 2, 4], "MODEL.SEGMENTOR.CHANNELS", 16, "MODEL.DEVICE", "cpu"]
    )
    model = build_model(cfg)
    assert isinstance(model, Segmentor)
    assert (model.num_classes, model.ignore_label) == (CLASSES, 255)
