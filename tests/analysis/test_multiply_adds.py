"""Multiply-adds by hand, and the published figures of the classifiers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elsa_det.analysis import analyze
from elsa_det.analysis.multiply_adds import AGGREGATION, CONVOLUTION, GHOST, LINEAR, PRODUCTS, MultiplyAddCounter
from elsa_det.analysis.parts import Accounting
from elsa_det.errors import UserError
from elsa_det.layers import ELSAAttention, WindowAttention
from elsa_det.modeling import ELSA_SWIN_VARIANTS, SWIN_VARIANTS, ELSASwin, Swin
from elsa_det.ops import registration


def count(model: nn.Module, *inputs: torch.Tensor) -> Accounting:
    accounting = Accounting([name for name, _ in model.named_modules()])
    with torch.no_grad(), MultiplyAddCounter(model, accounting):
        model(*inputs)
    return accounting


def on_meta(kind, **arguments) -> nn.Module:
    with torch.device("meta"):
        return kind(**arguments).to("meta")


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


@pytest.mark.parametrize(("lam", "gamma", "ghosts"), [(0.0, 0.0, 0), (0.0, 1.0, 1), (1.0, 0.0, 1), (0.5, 1.0, 2)])
def test_elsa_attention_by_hand(lam, gamma, ghosts):
    """dim 24 in 3 heads, q and k 16 wide in groups of 4, K = 5, on 2 maps of 9x11 pixels."""
    module = ELSAAttention(24, 3, 5, group_width=4, lam=lam, gamma=gamma).to("meta")
    accounting = count(module, meta(2, 9, 11, 24))
    pixels = 2 * 9 * 11
    assert dict(accounting.own["attn.0"].multiply_adds) == {CONVOLUTION: pixels * 16 * 4 * 25}
    assert dict(accounting.own["post_proj"].multiply_adds) == {LINEAR: pixels * 24 * 24}
    own = accounting.own[""].multiply_adds
    assert own[LINEAR] == pixels * (24 * (2 * 16 + 24) + 16 * 3 * 25)
    assert own[AGGREGATION] == pixels * 24 * 25
    assert own[GHOST] == ghosts * pixels * 24 * 25
    assert own[PRODUCTS] == own[CONVOLUTION] == 0


def test_the_same_without_the_compiled_operator(operator_library):
    module = nn.Sequential(nn.Identity(), ELSAAttention(24, 3, 5, group_width=4, lam=1.0)).to("meta")
    compiled = count(module, meta(2, 9, 11, 24))
    registration._decide.cache_clear()
    operator_library(None, None)
    with pytest.warns(RuntimeWarning, match="sum of shifted products"):
        shifted = count(module, meta(2, 9, 11, 24))
    assert shifted.total("1").multiply_adds == compiled.total("1").multiply_adds
    assert shifted.total().multiply_adds[GHOST] == 2 * 2 * 9 * 11 * 24 * 25


def test_window_attention_by_hand():
    """A 9x11 map is padded to 14x14: four windows of 49 pixels that each attend to 49."""
    with torch.device("meta"):
        module = WindowAttention(24, 3, 7, shift=3)
    total = count(module, meta(1, 9, 11, 24)).total().multiply_adds
    assert total[PRODUCTS] == 2 * 196 * 49 * 24
    assert total[LINEAR] == 196 * 24 * (3 * 24 + 24)
    assert total.total() == total[PRODUCTS] + total[LINEAR]


def test_convolutions_by_hand():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 8, 2, 2))
    accounting = count(model, meta(1, 4, 9, 13))
    assert accounting.total("0").multiply_adds.total() == 4 * 6 * 6 * 2 * 9
    assert accounting.total("1").multiply_adds.total() == 0
    assert accounting.total("2").multiply_adds.total() == 4 * 6 * 6 * 8 * 4


@pytest.mark.parametrize("kind", [ELSASwin, Swin])
def test_a_real_run_counts_the_same(kind):
    """With numbers on the CPU other routines run: 1x1 convolutions for linear layers, fused attention."""
    variant = {ELSASwin: ELSA_SWIN_VARIANTS, Swin: SWIN_VARIANTS}[kind]["nano"]
    real = analyze(kind(**variant), (64, 96), memory=False)
    without_numbers = analyze(on_meta(kind, **variant), (64, 96), memory=False)
    assert real.multiply_adds == without_numbers.multiply_adds > 0
    by_part = [{n: f.multiply_adds.total() for n, f in a.accounting.totals().items()} for a in (real, without_numbers)]
    assert by_part[0] == by_part[1]


CLASSIFIERS = [
    (ELSASwin, "tiny", dict(gamma=0.0), "29.00M", "4.70G"),
    (ELSASwin, "tiny", {}, "29.14M", "4.77G"),
    (ELSASwin, "small", {}, "52.9M", "9.56G"),
    (ELSASwin, "base", {}, "92.7M", "16.66G"),
    (Swin, "tiny", {}, "28M", "4.5G"),
    (Swin, "small", {}, "50M", "8.7G"),
    (Swin, "base", {}, "88M", "15.4G"),
]


@pytest.mark.parametrize(("kind", "size", "changes", "parameters", "multiply_adds"), CLASSIFIERS)
def test_published_figures_of_the_classifiers(kind, size, changes, parameters, multiply_adds):
    """At 224x224. The classifier has one norm and a layer to 1000 classes where the backbone has a norm a stage."""
    variant = (ELSA_SWIN_VARIANTS if kind is ELSASwin else SWIN_VARIANTS)[size]
    analysis = analyze(on_meta(kind, **variant, **changes), (224, 224), memory=False)
    width = 8 * variant["embed_dim"]
    norms = sum(analysis.accounting.total(f"norm{i}").parameters for i in range(4))
    ours = analysis.parameters - norms + 2 * width + 1001 * width, analysis.multiply_adds + 1000 * width
    assert (printed(ours[0], parameters), printed(ours[1], multiply_adds)) == (parameters, multiply_adds)


def printed(number: int, like: str) -> str:
    """``number`` in the unit and with the digits of a printed figure, such as "4.70G"."""
    digits = len(like[:-1].partition(".")[2])
    return f"{number / {'M': 1e6, 'G': 1e9}[like[-1]]:.{digits}f}{like[-1]}"


def test_parts_add_up():
    accounting = analyze(on_meta(ELSASwin, **ELSA_SWIN_VARIANTS["nano"]), (64, 64)).accounting
    totals = accounting.totals()
    for attribute in ("parameters", "trainable", "kept_bytes"):
        assert getattr(totals[""], attribute) == sum(getattr(f, attribute) for f in accounting.own.values())
    children = [name for name in totals if name and "." not in name]
    assert sum(totals[name].multiply_adds.total() for name in children) == totals[""].multiply_adds.total()
    assert [name for name, _ in accounting.tree(1)][:3] == ["", "patch_embed", "layers"]
    with pytest.raises(KeyError, match="no part 'layers.9'"):
        accounting.total("layers.9")


def test_frozen_parameters_and_state_of_the_model():
    model = on_meta(ELSASwin, **ELSA_SWIN_VARIANTS["nano"], frozen_stages=1).eval()
    total = analyze(model, (32, 32)).accounting.total()
    frozen = sum(p.numel() for part in (model.patch_embed, model.layers[0]) for p in part.parameters())
    assert total.parameters - total.trainable == frozen > 0
    assert not model.training
    hooks = [hook for module in model.modules() for hook in (module._forward_hooks, module._forward_pre_hooks)]
    assert not any(hooks)


def test_models_of_other_kinds_and_bad_sizes():
    with pytest.raises(UserError, match="Linear cannot be analysed: it is no two-stage detector"):
        analyze(nn.Linear(3, 3), (32, 32))
    with pytest.raises(UserError, match="image size 0x32.*must be positive"):
        analyze(nn.Linear(3, 3), (0, 32))
