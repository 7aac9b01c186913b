"""ELSA-Swin and Swin against recorded maps, published sizes and timm."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from elsa_det.checkpoint import convert_backbone_state_dict
from elsa_det.d2 import BACKBONE_REGISTRY, FPN, LazyCall, ShapeSpec, instantiate
from elsa_det.modeling import ELSA_SWIN_VARIANTS, SWIN_VARIANTS, ELSASwin, Swin

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = dict(embed_dim=12, depths=(1, 2, 1, 1), num_heads=(1, 2, 3, 4), group_width=4)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("case", torch.load(GOLDEN / "elsa_swin_backbone.pt", weights_only=True).values())
def test_recorded_maps(case):
    model = ELSASwin(**case["kwargs"]).eval()
    model.load_state_dict(convert_backbone_state_dict(case["state_dict"]))
    with torch.no_grad():
        maps = model(case["image"])
    assert list(maps) == ["p0", "p1", "p2", "p3"]
    for got, want in zip(maps.values(), case["features"], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("variant", "count"), [("tiny", 28_373_322), ("small", 52_106_970), ("base", 91_659_256)])
def test_parameter_counts_are_the_published(variant, count):
    with torch.device("meta"):
        assert parameters(ELSASwin(**ELSA_SWIN_VARIANTS[variant])) == count


def test_swin_agrees_with_timm():
    torch.manual_seed(0)
    theirs = timm.create_model("swin_tiny_patch4_window7_224", img_size=448, num_classes=0, depths=(2, 1, 1, 2)).eval()
    ours = Swin(depths=(2, 1, 1, 2), out_indices=(3,)).eval()
    assert parameters(ours) == parameters(theirs)
    missing, unexpected = ours.load_state_dict(convert_backbone_state_dict(theirs.state_dict()), strict=False)
    assert (missing, unexpected) == (["norm3.weight", "norm3.bias"], [])
    ours.norm3.load_state_dict(theirs.norm.state_dict())
    image = torch.randn(1, 3, 448, 448)
    with torch.no_grad():
        expected = theirs.forward_features(image).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours(image)["p3"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [ELSASwin, Swin])
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 96), (5, 130)])
def test_any_input_size(kind, size):
    settings = SMALL if kind is ELSASwin else {k: v for k, v in SMALL.items() if k != "group_width"}
    model = kind(**settings)
    maps = model(torch.randn(2, 3, *size))
    for i, (name, spec) in enumerate(model.output_shape().items()):
        stride = 4 * 2**i
        assert (name, spec.stride, spec.channels) == (f"p{i}", stride, 12 * 2**i)
        assert maps[name].shape == (2, 12 * 2**i, -(-size[0] // stride), -(-size[1] // stride))
    sum(m.square().mean() for m in maps.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_padding_is_right_and_bottom():
    model = ELSASwin(**SMALL).eval()
    image = torch.randn(1, 3, 30, 41)
    padded = torch.nn.functional.pad(image, (0, 3, 0, 2))
    with torch.no_grad():
        for name, value in model(image).items():
            torch.testing.assert_close(value, model(padded)[name])


def test_checkpointing_gives_the_same_gradients():
    image = torch.randn(1, 3, 32, 40)
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(3)
        model = ELSASwin(**SMALL, use_checkpoint=use_checkpoint, drop_path_rate=0.3).train()
        torch.manual_seed(4)
        sum(m.square().sum() for m in model(image).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize(
    ("frozen_stages", "prefixes"), [(-1, ()), (0, ("patch_embed.",)), (2, ("patch_embed.", "layers.0.", "layers.1."))]
)
def test_frozen_stages(frozen_stages, prefixes):
    model = ELSASwin(**SMALL, frozen_stages=frozen_stages, drop_path_rate=0.5).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(prefixes or "\0")}
    assert model.layers[0].training == (frozen_stages < 1)
    assert model.layers[2].training


def test_drop_path_rises_linearly():
    model = ELSASwin(**SMALL, drop_path_rate=0.4)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    model.train()
    image = torch.randn(1, 3, 32, 32)
    assert not torch.equal(model(image)["p3"], model(image)["p3"])
    model.eval()
    assert torch.equal(model(image)["p3"], model(image)["p3"])


@pytest.mark.parametrize(("lam", "gamma", "lead"), [(0, 1, 1), (1, 0, 1), (1, 1, 2), (2.0, 0.5, 2), (0, 0, None)])
def test_ghost_head_layout(lam, gamma, lead):
    attn = ELSASwin(**SMALL, lam=lam, gamma=gamma).layers[1].blocks[0].attn
    if lead is None:
        assert attn.ghost_head is None
        assert attn.ghost_matrices() == (None, None)
        return
    assert attn.ghost_head.shape == ((2, 1, 24, 7, 7) if lead == 2 else (1, 24, 7, 7))
    mul, add = attn.ghost_matrices()
    assert (mul is not None, add is not None) == (lam != 0, gamma != 0)
    if mul is not None:
        raw = attn.ghost_head[0, 0] if lead == 2 else attn.ghost_head[0]
        torch.testing.assert_close(mul, raw**lam)
        assert raw.std().item() == pytest.approx(1, abs=0.1)
    if add is not None:
        raw = attn.ghost_head[-1, 0] if lead == 2 else attn.ghost_head[-1]
        torch.testing.assert_close(add, raw * gamma)
        assert raw.std().item() == pytest.approx(0.02, abs=0.003)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (1, 1)}, "same length"),
        ({"num_heads": (1, 2, 3, 5)}, "num_heads=5 does not divide dim=96"),
        ({"window_size": 6}, "kernel_size must be odd and positive, got 6"),
        ({"out_indices": (4,)}, "out_indices"),
        ({"frozen_stages": 5}, "frozen_stages"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ELSASwin(**{**SMALL, **changes})


def test_lazy_call_builds_the_fpn():
    fpn = instantiate(
        LazyCall(FPN)(bottom_up=LazyCall(ELSASwin)(**SMALL), in_features=["p0", "p1", "p2", "p3"], out_channels=16)
    )
    maps = fpn(torch.randn(1, 3, 64, 64))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "p2": (1, 16, 16, 16),
        "p3": (1, 16, 8, 8),
        "p4": (1, 16, 4, 4),
        "p5": (1, 16, 2, 2),
    }


def test_registered_builders():
    yacs = pytest.importorskip("yacs.config")
    from elsa_det.modeling import add_elsa_config

    node = yacs.CfgNode
    cfg = node()
    cfg.MODEL = node({"FPN": node({"IN_FEATURES": [], "OUT_CHANNELS": 32, "NORM": "", "FUSE_TYPE": "sum"})})
    add_elsa_config(cfg)
    cfg.MODEL.ELSA_SWIN.merge_from_list(["EMBED_DIM", 12, "DEPTHS", [1, 1, 1, 1], "NUM_HEADS", [1, 2, 3, 4]])
    cfg.MODEL.SWIN.merge_from_list(["EMBED_DIM", 12, "DEPTHS", [1, 1, 1, 1], "NUM_HEADS", [1, 2, 3, 4]])
    shape = ShapeSpec(channels=3)
    assert isinstance(BACKBONE_REGISTRY.get("build_elsa_swin_backbone")(cfg, shape), ELSASwin)
    assert isinstance(BACKBONE_REGISTRY.get("build_swin_backbone")(cfg, shape), Swin)
    for name, kind in (("build_elsa_swin_fpn_backbone", ELSASwin), ("build_swin_fpn_backbone", Swin)):
        fpn = BACKBONE_REGISTRY.get(name)(cfg, shape)
        assert isinstance(fpn.bottom_up, kind)
        assert {n: (s.channels, s.stride) for n, s in fpn.output_shape().items()} == {
            f"p{i}": (32, 2**i) for i in range(2, 7)
        }


def test_swin_sizes_match_elsa():
    assert {name: v["depths"] for name, v in SWIN_VARIANTS.items()} == {
        name: v["depths"] for name, v in ELSA_SWIN_VARIANTS.items()
    }
