"""The heads: published numbers, sizes, one image a step, several processes."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from d2_access import d2_module
from segmentor_cases import segmentor_config

from elsa_det.checkpoint import convert_segmentor_state_dict
from elsa_det.d2 import FPN, Backbone, ShapeSpec, comm, instantiate
from elsa_det.modeling import ELSA_SWIN_VARIANTS, FCNHead, SemanticFPNHead, UPerHead, stage_shapes
from elsa_det.modeling.semantic import conv

GOLDEN = torch.load(Path(__file__).parents[2] / "golden" / "upernet_heads.pt", weights_only=True)
WIDTHS = [8, 16, 32, 64]
SIZES = [(17, 23), (9, 12), (5, 6), (3, 3)]


def published(head, part):
    """The head with the recorded weights."""
    weights = convert_segmentor_state_dict(GOLDEN["state_dict"])
    head.load_state_dict({k.removeprefix(part): v for k, v in weights.items() if k.startswith(part)})
    return head.eval()


def decode_head(**changes):
    settings = dict(in_channels=GOLDEN["in_channels"], channels=GOLDEN["channels"], num_classes=GOLDEN["num_classes"])
    return published(UPerHead(**settings, **changes), "decode_head.")


def auxiliary_head(in_channels):
    head = FCNHead(in_channels, channels=GOLDEN["aux_channels"], num_classes=GOLDEN["num_classes"])
    return published(head, "auxiliary_head.")


def maps(batch=1, sizes=SIZES, widths=WIDTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, width, *size, generator=generator) for width, size in zip(widths, sizes)]


def named(features):
    return {f"p{i}": x for i, x in enumerate(features)}


def assert_recorded(got, name):
    torch.testing.assert_close(got, GOLDEN[name], rtol=0, atol=1e-5)


@torch.no_grad()
def test_published_logits():
    features = GOLDEN["features"]
    head = decode_head()
    assert_recorded(head(features), "decode_logits")
    assert_recorded(head(named(features)), "decode_logits")
    shapes = {f"p{i}": ShapeSpec(channels=c, stride=4 * 2**i) for i, c in enumerate(GOLDEN["in_channels"])}
    by_shape = UPerHead(input_shape=shapes, channels=GOLDEN["channels"], num_classes=GOLDEN["num_classes"])
    assert_recorded(published(by_shape, "decode_head.")(named(features)), "decode_logits")


@torch.no_grad()
def test_published_auxiliary_logits():
    features = GOLDEN["features"]
    head = auxiliary_head(GOLDEN["in_channels"][2])
    for given in (features, named(features), features[2]):
        assert_recorded(head(given), "auxiliary_logits")
    assert_recorded(auxiliary_head(GOLDEN["in_channels"])(features), "auxiliary_logits")


@pytest.mark.parametrize(("size", "total"), [("tiny", 60_794_486), ("small", 84_528_134)])
def test_parameters_of_the_paper(size, total):
    """UPerNet with its auxiliary head for the 150 classes of ADE20K; recipes' table: 61M and 85M."""
    cfg = segmentor_config("upernet", **ELSA_SWIN_VARIANTS[size])
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == total


def step(head, features):
    """A forward and backward pass in training; the logits."""
    logits = head.train()(features)
    target = torch.zeros(len(logits), *logits.shape[-2:], dtype=torch.int64)
    head.losses(logits, target).backward()
    return logits


@pytest.mark.parametrize("norm", ["auto", "BN", "SyncBN", "naiveSyncBN"])
def test_batch_of_one_trains(norm, caplog):
    conv._say_once.cache_clear()
    torch.manual_seed(0)
    head = UPerHead(WIDTHS, 16, num_classes=5, norm=norm)  # SyncBN outside of a job works on the CPU
    coarsest = head.pooling[0].norm
    with torch.no_grad():
        coarsest.running_mean.fill_(0.5)
        coarsest.running_var.fill_(4.0)
        coarsest.weight.fill_(3.0)
        coarsest.bias.fill_(0.25)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    features = maps()
    with caplog.at_level(logging.WARNING, logger="elsa_det"):
        logits = step(head, features)
        step(head, features)
    assert [record.getMessage() for record in caplog.records] == [
        "A batch normalisation gets an input of shape (1, 64, 1, 1), one value per channel, and uses its running "
        "statistics instead: train with more than one image a step to train it too."
    ]
    assert torch.isfinite(logits).all()
    assert [name for name, p in head.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    assert coarsest.training
    # By hand: the mean of the map, the convolution, and the statistics as they stand.
    mean = features[3].mean(dim=(2, 3))
    expected = (mean @ head.pooling[0].weight[:, :, 0, 0].T - 0.5) / (4.0 + coarsest.eps) ** 0.5 * 3.0 + 0.25
    pooled = head.pooling[0](features[3].mean(dim=(2, 3), keepdim=True))
    torch.testing.assert_close(pooled[..., 0, 0], expected.relu())
    for key, value in head.state_dict().items():
        if "running" in key:
            assert torch.equal(value, before[key]) == key.startswith("pooling.0."), key


def test_batch_of_two_trains_every_norm():
    head = UPerHead(WIDTHS, 16, num_classes=5)
    step(head, maps(batch=2))
    for key, value in head.state_dict().items():
        if key.endswith("running_mean"):
            assert value.abs().sum() > 0, key


def test_two_processes_of_one_image_train_as_one_of_two(monkeypatch):
    """Two processes played by two threads: what they reduce is summed within one autograd graph."""
    torch.manual_seed(0)
    settings = dict(channels=8, num_classes=3, dropout_ratio=0.0)
    together, *apart = (UPerHead(WIDTHS, norm=norm, **settings) for norm in ("BN", "naiveSyncBN", "naiveSyncBN"))
    for head in apart:
        head.load_state_dict(together.state_dict())
    features = maps(batch=2)
    logits = together.train()(features)
    logits.square().mean().backward()

    barrier, parts = threading.Barrier(2, timeout=20), {}

    def all_reduce(part):
        parts[threading.get_ident()] = part
        barrier.wait()
        total = sum(parts.values())
        barrier.wait()
        return total

    monkeypatch.setattr(d2_module("layers.batch_norm"), "differentiable_all_reduce", all_reduce)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda i: apart[i].train()([x[i : i + 1] for x in features]), range(2)))
    torch.testing.assert_close(torch.cat(halves), logits, rtol=0, atol=1e-5)
    torch.cat(halves).square().mean().backward()
    for (name, whole), *of_each in zip(together.named_parameters(), *(head.named_parameters() for head in apart)):
        torch.testing.assert_close(
            sum(p.grad for _, p in of_each), whole.grad, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: name + text
        )


def test_dropout_drops_whole_channels_in_training_only():
    torch.manual_seed(0)
    head = FCNHead(4, 4, num_classes=2, num_convs=0, dropout_ratio=0.5)
    seen = []
    head.predictor.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.ones(64, 4, 2, 2)
    head.train()(x)
    head.eval()(x)
    per_channel = seen[0].flatten(2)
    assert set(per_channel.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(per_channel.amin(2), per_channel.amax(2))
    assert torch.equal(seen[1], x)


def test_fcn_variants():
    head = FCNHead(6, 4, num_classes=2, num_convs=2, kernel_size=1, concat_input=True, in_features="x")
    assert {k: tuple(v.shape) for k, v in head.state_dict().items() if v.ndim == 4} == {
        "predictor.weight": (2, 4, 1, 1),
        "convs.0.weight": (4, 6, 1, 1),
        "convs.1.weight": (4, 4, 1, 1),
        "conv_cat.weight": (4, 10, 1, 1),
    }
    assert head.eval()({"x": torch.zeros(1, 6, 3, 5)}).shape == (1, 2, 3, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UPerHead(num_classes=3), "either in_channels or input_shape"),
        (lambda: UPerHead(WIDTHS, num_classes=3, in_index=[0, 1]), "must be of the same length"),
        (lambda: UPerHead(num_classes=3, input_shape=stage_shapes(8), in_features=["p7"]), r"\['p7'\] must name"),
        (lambda: UPerHead(WIDTHS, num_classes=0), "num_classes=0"),
        (lambda: UPerHead(WIDTHS, num_classes=300), "ignore_label=255 is one of the 300 classes"),
        (lambda: FCNHead(WIDTHS, num_classes=3, in_index=4), "in_index=4 is not one of the maps"),
        (lambda: FCNHead(8, 4, num_classes=3, num_convs=0), "num_convs=0 does not lead from 8 channels to 4"),
        (lambda: UPerHead(WIDTHS, 4, num_classes=3)(maps()[:3]), r"\[0, 1, 2, 3\] of 3"),
        (lambda: UPerHead(WIDTHS, 4, num_classes=3)({"p0": maps()[0]}), r"and there are \['p0'\]"),
        (lambda: UPerHead(WIDTHS, 4, num_classes=3)(maps()[::-1]), r"\[8, 16, 32, 64\] channels .* got \[64, 32"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Given(Backbone):
    """A backbone whose maps are given."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def output_shape(self):
        return {k: ShapeSpec(channels=v.shape[1], stride=4 * 2**i) for i, (k, v) in enumerate(self.features.items())}

    def forward(self, _):
        return self.features


@torch.no_grad()
def test_semantic_fpn_is_a_pyramid_and_the_sum_of_its_upsampled_levels():
    """At sizes that halve evenly: Detectron2's FPN, and the branch of the paper by hand."""
    features = named(maps(batch=2, sizes=[(32, 24), (16, 12), (8, 6), (4, 3)]))
    torch.manual_seed(0)
    head = SemanticFPNHead(WIDTHS, 32, num_classes=5, pyramid_channels=24).eval()
    fpn = FPN(Given(features), ["p0", "p1", "p2", "p3"], 24)
    weights = head.state_dict()
    fpn.load_state_dict(
        {
            f"fpn_{kind}{i + 2}.{leaf}": weights[f"{kind}_convs.{i}.{leaf}"]
            for kind in ("lateral", "output")
            for i in range(4)
            for leaf in ("weight", "bias")
        }
    )
    total = 0
    for level, x in enumerate(fpn(torch.zeros(1)).values()):
        for step in range(max(level, 1)):
            key = f"branches.{level}.{step}"
            x = F.conv2d(x, weights[f"{key}.weight"], padding=1)
            x = F.group_norm(x, 32, weights[f"{key}.norm.weight"], weights[f"{key}.norm.bias"]).relu()
            if level:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        total = total + x
    expected = F.conv2d(total, weights["predictor.weight"], weights["predictor.bias"])
    torch.testing.assert_close(head(features), expected, rtol=0, atol=1e-5)


def test_semantic_fpn_takes_any_size():
    head = SemanticFPNHead(WIDTHS, 32, num_classes=5, pyramid_channels=8)
    logits = step(head, maps(batch=1))
    assert logits.shape == (1, 5, 17, 23)
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


def test_semantic_fpn_is_the_lighter_one():
    counts = {}
    for name in ("upernet", "semantic_fpn"):
        with torch.device("meta"):
            model = instantiate(segmentor_config(name, **ELSA_SWIN_VARIANTS["tiny"]).model)
        counts[name] = sum(p.numel() for p in model.decode_head.parameters())
    # Semantic FPN by hand: 1x1 and 3x3 convolutions of the pyramid, those of the branches, norms, classifier.
    pyramid = (96 + 192 + 384 + 768) * 256 + 4 * 256 + 4 * (256 * 256 * 9 + 256)
    branches = 4 * 256 * 128 * 9 + 3 * 128 * 128 * 9 + 7 * 2 * 128
    assert counts == {"upernet": 31_497_366, "semantic_fpn": pyramid + branches + 128 * 150 + 150}
