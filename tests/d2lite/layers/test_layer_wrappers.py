from __future__ import annotations

import math

import pytest
import torch
from d2_access import d2_module
from torch import nn

from elsa_det.d2 import ShapeSpec, get_norm


@pytest.fixture
def layers():
    return d2_module("layers")


def test_shape_spec():
    spec = ShapeSpec(channels=3, stride=4)
    assert (spec.channels, spec.height, spec.width, spec.stride) == (3, None, None, 4)
    assert spec == ShapeSpec(3, None, None, 4)
    assert repr(spec) == "ShapeSpec(channels=3, height=None, width=None, stride=4)"


def test_the_names_of_pytorch(layers):
    assert layers.ConvTranspose2d is nn.ConvTranspose2d
    assert layers.BatchNorm2d is nn.BatchNorm2d
    assert layers.Linear is nn.Linear
    assert layers.interpolate is nn.functional.interpolate


def test_conv_norm_activation(layers):
    conv = layers.Conv2d(1, 1, 1, bias=False, norm=get_norm("FrozenBN", 1), activation=torch.relu)
    conv.weight.data.fill_(2.0)
    conv.norm.bias.fill_(-1.0)
    x = torch.tensor([0.0, 0.25, 2.0]).reshape(1, 1, 1, 3)
    assert torch.allclose(conv(x).flatten(), torch.tensor([0.0, 0.0, 3.0]), atol=1e-6)
    assert list(conv.state_dict()) == [
        "weight",
        *(f"norm.{n}" for n in ("weight", "bias", "running_mean", "running_var")),
    ]
    assert layers.Conv2d(3, 4, 1).norm is None


def test_conv_of_nothing(layers):
    conv = layers.Conv2d(3, 32, 3, stride=2, padding=1, norm=get_norm("GN", 32), activation=torch.relu)
    x = torch.zeros(0, 3, 8, 6, requires_grad=True)
    y = conv(x)
    assert y.shape == (0, 32, 4, 3)
    y.sum().backward()
    assert conv.weight.grad.abs().sum() == 0
    assert layers.ConvTranspose2d(3, 4, 2, stride=2)(x).shape == (0, 4, 16, 12)
    assert layers.interpolate(x, scale_factor=2).shape == (0, 3, 16, 12)
    assert layers.Linear(6, 2)(torch.zeros(0, 6)).shape == (0, 2)


def test_sync_batch_norm_refuses_nothing(layers):
    conv = layers.Conv2d(3, 4, 1, norm=get_norm("SyncBN", 4))
    with pytest.raises((ValueError, AssertionError), match="SyncBatchNorm"):
        conv(torch.zeros(0, 3, 8, 8))
    assert conv.eval()(torch.zeros(0, 3, 8, 8)).shape == (0, 4, 8, 8)


def test_cat_copies_only_what_it_must(layers):
    x = torch.arange(4).reshape(2, 2)
    assert layers.cat([x]) is x
    assert layers.cat((x, x), dim=1).tolist() == [[0, 1, 0, 1], [2, 3, 2, 3]]


def test_cross_entropy(layers):
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])
    targets = torch.tensor([0, 1])
    each = layers.cross_entropy(logits, targets, reduction="none")
    assert torch.allclose(each, torch.tensor([math.log(2), math.log(4 / 3)]))
    assert layers.cross_entropy(logits, targets).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert layers.cross_entropy(logits, targets, ignore_index=1).item() == pytest.approx(math.log(2))


def test_cross_entropy_of_no_targets_is_zero_with_a_gradient(layers):
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = layers.cross_entropy(logits, torch.zeros(0, dtype=torch.long))
    assert loss.item() == 0.0
    loss.backward()
    assert logits.grad.shape == (0, 5)
    assert layers.cross_entropy(logits, torch.zeros(0, dtype=torch.long), reduction="sum").item() == 0.0


def test_nonzero_tuple_and_move_device_like(layers):
    rows, columns = layers.nonzero_tuple(torch.tensor([[0, 1], [2, 0]]))
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])
    moved = layers.move_device_like(torch.ones(2), torch.ones(1, dtype=torch.float64))
    assert moved.dtype == torch.float32
    assert moved.device == torch.device("cpu")
