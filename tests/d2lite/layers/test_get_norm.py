from __future__ import annotations

import math

import pytest
import torch
from d2_access import d2_module
from torch import nn

from elsa_det.d2 import get_norm

AFFINE = ["weight", "bias"]
STATISTICS = ["running_mean", "running_var"]


@pytest.mark.parametrize(
    ("name", "kind", "keys"),
    [
        ("BN", "BatchNorm2d", [*AFFINE, *STATISTICS, "num_batches_tracked"]),
        ("SyncBN", "SyncBatchNorm", [*AFFINE, *STATISTICS, "num_batches_tracked"]),
        ("nnSyncBN", "SyncBatchNorm", [*AFFINE, *STATISTICS, "num_batches_tracked"]),
        ("FrozenBN", "FrozenBatchNorm2d", [*AFFINE, *STATISTICS]),
        ("naiveSyncBN", "NaiveSyncBatchNorm", [*AFFINE, *STATISTICS, "num_batches_tracked"]),
        ("naiveSyncBN_N", "NaiveSyncBatchNorm", [*AFFINE, *STATISTICS, "num_batches_tracked"]),
        ("GN", "GroupNorm", AFFINE),
        ("LN", "LayerNorm", AFFINE),
    ],
)
def test_names(name, kind, keys):
    layer = get_norm(name, 64)
    assert type(layer).__name__ == kind
    assert list(layer.state_dict()) == keys
    assert layer.weight.shape == (64,)


def test_group_norm_has_32_groups():
    assert get_norm("GN", 64).num_groups == 32


def test_no_norm_and_own_norm():
    assert get_norm("", 8) is None
    assert get_norm(None, 8) is None
    assert get_norm(nn.InstanceNorm2d, 8).num_features == 8


def test_an_unknown_name():
    with pytest.raises(KeyError, match="BatchNormal"):
        get_norm("BatchNormal", 8)


def test_layer_norm_is_over_channels():
    layer = get_norm("LN", 2)
    layer.weight.data = torch.tensor([1.0, 10.0])
    layer.bias.data = torch.tensor([0.0, 1.0])
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]]).reshape(1, 2, 1, 2)
    one = 1 / math.sqrt(1 + 1e-6)
    assert torch.allclose(layer(x).flatten(), torch.tensor([-one, 0.0, 1 + 10 * one, 1.0]))
    assert layer(x[:0]).shape == (0, 2, 1, 2)


def _set_statistics(layer: nn.Module) -> nn.Module:
    for name, value in (("weight", 2.0), ("bias", 1.0), ("running_mean", 3.0), ("running_var", 4.0)):
        getattr(layer, name).data.fill_(value)
    return layer


@pytest.mark.parametrize("with_gradient", [False, True])
def test_frozen_batch_norm(with_gradient):
    layer = _set_statistics(get_norm("FrozenBN", 2))
    x = torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1).requires_grad_(with_gradient)
    y = layer(x)
    assert torch.allclose(y.flatten(), torch.tensor([1.0, 3.0]), atol=1e-5)
    assert not list(layer.parameters())
    if with_gradient:
        y.sum().backward()
        assert torch.allclose(x.grad.flatten(), torch.tensor([1.0, 1.0]), atol=1e-5)


def test_a_new_frozen_batch_norm_is_the_identity():
    x = torch.linspace(-2, 2, 8).reshape(2, 2, 2, 1)
    assert torch.allclose(get_norm("FrozenBN", 2)(x), x, atol=1e-6)


def _load(keys: list[str], version: int | None) -> tuple[nn.Module, list[str], list[str]]:
    net = nn.Sequential(get_norm("FrozenBN", 2))
    state = nn.Sequential(nn.Identity()).state_dict()
    for number, key in enumerate(keys):
        state[f"0.{key}"] = torch.full((2,), float(number + 5))
    state._metadata = {"": {"version": 1}, "0": {} if version is None else {"version": version}}
    outcome = net.load_state_dict(state, strict=False)
    return net[0], outcome.missing_keys, outcome.unexpected_keys


@pytest.mark.parametrize("version", [None, 1])
def test_frozen_checkpoints_of_old_may_lack_statistics(version):
    layer, missing, unexpected = _load(AFFINE, version)
    assert missing == unexpected == []
    assert layer.weight.tolist() == [5.0, 5.0]
    assert layer.running_mean.tolist() == [0.0, 0.0]
    assert layer.running_var.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("version", [2, 3])
def test_newer_frozen_checkpoints_may_not(version):
    _, missing, _ = _load(AFFINE, version)
    assert missing == ["0.running_mean", "0.running_var"]


@pytest.mark.parametrize("version", [None, 1, 2, 3])
def test_frozen_checkpoints_with_statistics(version):
    layer, missing, unexpected = _load([*AFFINE, *STATISTICS], version)
    assert missing == unexpected == []
    assert layer.running_var.tolist() == [8.0, 8.0]


def test_convert_frozen_batchnorm():
    Frozen = d2_module("layers").FrozenBatchNorm2d
    bare = nn.SyncBatchNorm(2, affine=False, eps=1e-3)
    net = nn.Sequential(nn.Conv2d(2, 2, 1), _set_statistics(nn.BatchNorm2d(2)), nn.ModuleDict({"inner": bare}))
    converted = Frozen.convert_frozen_batchnorm(net)
    assert converted is net
    assert isinstance(net[1], Frozen)
    assert isinstance(net[2]["inner"], Frozen)
    assert net[1].bias.tolist() == [1.0, 1.0]
    assert net[1].running_var.tolist() == [4.0, 4.0]
    assert net[2]["inner"].eps == 1e-3
    assert net[2]["inner"].weight.tolist() == [1.0, 1.0]
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias"]
    alone = Frozen.convert_frozen_batchnorm(nn.BatchNorm2d(2))
    assert isinstance(alone, Frozen)


def test_freezing_a_block():
    layers = d2_module("layers")
    block = layers.CNNBlockBase(2, 4, stride=2)
    block.conv = layers.Conv2d(2, 4, 1, norm=get_norm("BN", 4))
    assert block.freeze() is block
    assert (block.in_channels, block.out_channels, block.stride) == (2, 4, 2)
    assert not any(parameter.requires_grad for parameter in block.parameters())
    assert isinstance(block.conv.norm, layers.FrozenBatchNorm2d)
