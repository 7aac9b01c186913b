"""Parameter groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elsa_det.d2 import get_default_optimizer_params


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(2))
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)
        self.again = self.conv


def groups(**arguments):
    """Hyperparameters and parameter names, in order."""
    net = Net()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return [
        ({key: value for key, value in group.items() if key != "params"}, [names[id(p)] for p in group["params"]])
        for group in get_default_optimizer_params(net, **arguments)
    ]


def test_without_arguments_one_group():
    assert groups() == [({}, ["token", "conv.weight", "conv.bias", "norm.weight", "norm.bias"])]


def test_norm_weight_decay():
    assert groups(base_lr=0.1, weight_decay_norm=0.0) == [
        ({"lr": 0.1}, ["token", "conv.weight", "conv.bias"]),
        ({"lr": 0.1, "weight_decay": 0.0}, ["norm.weight", "norm.bias"]),
    ]


def test_bias_has_its_own():
    found = groups(base_lr=0.1, weight_decay=1e-4, weight_decay_norm=0.0, bias_lr_factor=2.0, weight_decay_bias=0.5)
    assert found == [
        ({"lr": 0.1, "weight_decay": 1e-4}, ["token", "conv.weight"]),
        ({"lr": 0.2, "weight_decay": 0.5}, ["conv.bias", "norm.bias"]),
        ({"lr": 0.1, "weight_decay": 0.0}, ["norm.weight"]),
    ]


def test_factor_by_name_and_overrides():
    asked = []

    def factor(name):
        asked.append(name)
        return 0.5 if name.startswith("conv") else 1.0

    found = groups(base_lr=0.1, lr_factor_func=factor, overrides={"token": {"weight_decay": 0.0}})
    assert asked == [".token", "conv.weight", "conv.bias", "norm.weight", "norm.bias"]
    assert found == [
        ({"lr": 0.1, "weight_decay": 0.0}, ["token"]),
        ({"lr": 0.05}, ["conv.weight", "conv.bias"]),
        ({"lr": 0.1}, ["norm.weight", "norm.bias"]),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {"bias_lr_factor": 2.0},
        {"lr_factor_func": len},
        {"weight_decay_bias": 0.0, "overrides": {"bias": {"lr": 1.0}}},
    ],
)
def test_contradictions(arguments):
    with pytest.raises(ValueError, match=r"base_lr|bias"):
        groups(**arguments)
