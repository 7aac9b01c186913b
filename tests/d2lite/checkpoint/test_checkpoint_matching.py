"""Matching names by their ends."""

from __future__ import annotations

import pytest
import torch

from elsa_det.d2lite.checkpoint.matching import align_state_dict


def aligned(model, loaded):
    """Which loaded name each name of the result has its tensor from. Sizes stand for tensors."""
    tensors = {name: torch.zeros(size) for name, size in loaded.items()}
    names = {id(tensor): name for name, tensor in tensors.items()}
    result = align_state_dict({name: torch.zeros(size) for name, size in model.items()}, tensors)
    return {name: names[id(tensor)] for name, tensor in result.items()}


def test_longest_whole_suffix():
    model = {"body.res2.conv1.w": 1, "body.conv1.w": 1, "body.my_conv2.w": 1, "w": 1}
    assert aligned(model, {"conv1.w": 1, "res2.conv1.w": 1, "conv2.w": 1}) == {
        "body.res2.conv1.w": "res2.conv1.w",
        "body.conv1.w": "conv1.w",
        "conv2.w": "conv2.w",  # of my_conv2 it is no whole part
    }


def test_shapes_have_to_agree(caplog):
    assert aligned({"a.x": 1, "a.y": 1}, {"x": 2, "y": 1}) == {"a.y": "y", "x": "x"}
    assert "x is not loaded into a.x: its shape is (2,), and the model's (1,)" in caplog.text


def test_nothing_matches(caplog):
    assert aligned({"a.x": 1}, {"y": 1, "b.z": 1}) == {"y": "y", "b.z": "b.z"}
    assert "None of the checkpoint's 2 tensors matches" in caplog.text


def test_ambiguity():
    with pytest.raises(ValueError, match=r"'x' of the checkpoint fits both 'a\.x' and 'b\.x'"):
        aligned({"a.x": 1, "b.x": 1}, {"x": 1})
