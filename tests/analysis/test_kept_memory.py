"""What is kept for the backward, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from elsa_det import get_config
from elsa_det.analysis import analyze, analyze_config
from elsa_det.analysis.memory import KeptMemory
from elsa_det.analysis.parts import Accounting
from elsa_det.layers import ELSAAttention
from elsa_det.modeling import ELSA_SWIN_VARIANTS, SWIN_VARIANTS, ELSASwin, Swin

FLOAT = 4


def kept(model: nn.Module, x: torch.Tensor) -> Accounting:
    accounting = Accounting([name for name, _ in model.named_modules()])
    with KeptMemory(model, accounting):
        model(x)
    return accounting


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_layers_by_hand(device):
    """Linear keeps its input; GELU its input; the second linear its input; ReLU keeps its output, in place of nothing
    else. Weights do not count."""
    with torch.device(device):
        model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4), nn.ReLU())
        x = torch.ones(10, 8)
    accounting = kept(model, x)
    own = [accounting.own[str(i)].kept_bytes for i in range(4)]
    assert own == [10 * 8 * FLOAT, 10 * 16 * FLOAT, 10 * 16 * FLOAT, 10 * 4 * FLOAT]
    assert accounting.total().kept_bytes == sum(own)


def test_a_storage_counts_once_and_whole():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, device="meta"), nn.Linear(4, 4, device="meta")

        def forward(self, x):
            return self.first(x) + self.second(x) + self.first(x[:2]).sum()

    accounting = kept(Twice(), torch.empty(10, 4, device="meta"))
    assert accounting.own["first"].kept_bytes == 10 * 4 * FLOAT
    assert accounting.own["second"].kept_bytes == 0


def test_frozen_layers_keep_nothing():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
        model[0].requires_grad_(False)
        accounting = kept(model, torch.empty(10, 8))
    assert [accounting.own[str(i)].kept_bytes for i in range(3)] == [0, 0, 10 * 16 * FLOAT]


def test_checkpointing_keeps_the_input_only():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))

        def forward(self, x):
            return checkpoint(self.inner, x * 1, use_reentrant=False)

    with torch.device("meta"):
        accounting = kept(Block(), torch.empty(10, 8, requires_grad=True))
    assert accounting.total().kept_bytes == 10 * 8 * FLOAT


def test_recomputed_logits_of_elsa_attention():
    """Recomputing keeps the group convolution's output, which GELU keeps otherwise, and saves what GELU gives and the
    logits of every head."""
    sizes = {}
    for recompute in (False, True):
        module = ELSAAttention(24, 3, 5, group_width=4, recompute_logits=recompute).to("meta")
        sizes[recompute] = kept(module, torch.empty(1, 9, 11, 24, device="meta")).total().kept_bytes
    assert sizes[False] - sizes[True] == 9 * 11 * (16 + 3 * 25) * FLOAT


@pytest.mark.parametrize(("kind", "variants"), [(ELSASwin, ELSA_SWIN_VARIANTS), (Swin, SWIN_VARIANTS)])
def test_a_real_step_keeps_the_same(kind, variants):
    """On the CPU other routines run than without numbers: 1x1 convolutions for linear layers."""
    model = kind(**variants["nano"])
    real, without_numbers = (analyze(model.to(device), (64, 96)).accounting.totals() for device in ("cpu", "meta"))
    assert {n: f.kept_bytes for n, f in real.items()} == {n: f.kept_bytes for n, f in without_numbers.items()}
    assert real[""].kept_bytes > 0


def test_heads_keep_what_their_sampled_regions_need():
    """Quickstart: 32 regions, half of them with masks. The box head keeps the pooled regions and the output of each
    ReLU, which is the next layer's input, too."""
    totals = analyze_config(get_config("quickstart/elsa_nano_mrcnn"), (64, 64)).accounting.totals()
    assert totals["roi_heads.box_head"].kept_bytes == 32 * (64 * 49 + 256 + 256) * FLOAT
    assert totals["roi_heads.box_predictor"].kept_bytes == 0
    # the pooled maps and two convolutions at 14x14, the upsampled map at 28x28
    assert totals["roi_heads.mask_head"].kept_bytes == 16 * 64 * (3 * 14**2 + 28**2) * FLOAT


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("quickstart/elsa_nano_cascade", [f"roi_heads.{h}_head.{i}" for h in ("box", "mask") for i in range(3)]),
        ("quickstart/elsa_nano_upernet", ["decode_head", "auxiliary_head"]),
        ("coco/elsa_t_retinanet_1x", ["head.cls_subnet", "head.bbox_subnet"]),
        ("coco/elsa_t_faster_1x", ["roi_heads.box_head", "proposal_generator.rpn_head"]),
    ],
)
def test_all_heads_of_other_models_are_counted(name, parts):
    totals = analyze_config(get_config(name), (64, 64)).accounting.totals()
    for part in ["backbone", *parts]:
        assert totals[part].kept_bytes > 0, part
        assert (totals[part].multiply_adds.total() > 0) == (part != "auxiliary_head"), part
