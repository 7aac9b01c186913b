"""Seeds, paths, and what a bug report says."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from d2_access import d2_module

from elsa_det.d2 import PathManager, collect_env_info, seed_all_rng


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_seed(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    seed_all_rng(42)
    assert draw() == (0.6394267984578837, 0.3745401188473625, 0.8822692632675171)
    assert os.environ["PYTHONHASHSEED"] == "42"
    seed_all_rng(None)
    first = draw()
    seed_all_rng(None)
    assert draw() != first


def test_torch_version():
    assert tuple(int(part) for part in torch.__version__.split(".")[:2]) == d2_module("utils.env").TORCH_VERSION


def test_path_manager(tmp_path, monkeypatch):
    with PathManager.open(str(tmp_path / "a.txt"), "w") as file:
        file.write("hello")
    assert PathManager.ls(str(tmp_path)) == ["a.txt"]
    asked = []
    monkeypatch.setattr(
        PathManager, "get_local_path", lambda path, force=False, **kwargs: asked.append(path) or "/cache/R-50.pkl"
    )
    handler = d2_module("utils.file_io").Detectron2Handler()
    assert handler._get_local_path("detectron2://ImageNetPretrained/R-50.pkl") == "/cache/R-50.pkl"
    assert asked == ["https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/R-50.pkl"]


def test_environment():
    text = collect_env_info()
    for expected in ("detectron2", torch.__version__, np.__version__, "fvcore", "GPU available", "Python"):
        assert expected in text


def test_out_of_memory_goes_to_the_cpu(monkeypatch):
    calls = []

    def greedy(value, *, other):
        calls.append((value, other))
        if len(calls) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return value + other

    assert d2_module("utils.memory").retry_if_cuda_oom(greedy)(1, other=2) == 3
    assert len(calls) == 3
