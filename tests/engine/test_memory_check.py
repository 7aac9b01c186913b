"""The memory of a step, estimated and compared with what is free."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from elsa_det import get_config
from elsa_det.analysis import analyze, build_on_meta
from elsa_det.engine import memory_check
from elsa_det.engine.free_memory import free_host_memory
from elsa_det.engine.memory_check import augmented_size, check_memory, estimate_memory
from elsa_det.errors import UserError

GIB = 2**30


@pytest.fixture
def config(tmp_path):
    Image.fromarray(np.zeros((30, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "train.json").write_text("{}")
    cfg = get_config("quickstart/elsa_nano_mrcnn", ["train.device=cpu", "model.backbone.bottom_up.embed_dim=16"])
    cfg.dataset.train.json_file, cfg.dataset.train.image_root = f"{tmp_path}/train.json", str(tmp_path)
    return cfg


def test_the_estimate_is_that_of_the_parts(config):
    config.dataloader.train.total_batch_size = 6
    config.train.accumulate = 2
    config.train.ema.enabled = True
    model = build_on_meta(config.model)
    parameters = sum(p.numel() for p in model.parameters())
    estimate = estimate_memory(config)
    assert (estimate.images, estimate.image_size) == (3, (60, 60))  # transposed or not
    assert estimate.state_bytes == 5 * 4 * parameters  # weights, their average, gradients, two of AdamW
    # the kept memory of a batch is that of its images, but for what they share
    assert estimate.activation_bytes == pytest.approx(3 * analyze(model, (60, 60)).kept_bytes, rel=0.02)
    config.train.amp.enabled = True
    assert estimate_memory(config).activation_bytes == estimate.activation_bytes // 2


def test_the_size_is_what_augmentation_makes_of_the_images(tmp_path):
    for name, size in (("a.jpg", (640, 480)), ("b.jpg", (1000, 500))):
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "train.json").write_text("{}")
    places = [f"dataset.train.json_file={tmp_path}/train.json", f"dataset.train.image_root={tmp_path}"]
    cfg = get_config("quickstart/elsa_nano_mrcnn_finetune", [*places, "dataset.image_size.train=[200]"])
    np.random.seed(4)
    expected = np.random.RandomState(4).rand()
    assert augmented_size(cfg) == (200, 400)
    assert np.random.rand() == expected  # the training's numbers are untouched


def test_too_little_is_an_error_a_warning_or_nothing(config, monkeypatch):
    monkeypatch.setattr(memory_check, "free_memory", lambda device: (1_000_000, "MemAvailable"))
    del config.train.check_memory  # a config from before it
    with pytest.raises(
        UserError, match=r"little memory: .* 0\.00 GB are free \(MemAvailable\)\. Set train\.accumulate"
    ):
        check_memory(config)
    config.train.check_memory = "warn"
    (line,) = check_memory(config)
    assert line.startswith("Memory: too little memory: a training step takes about 0.0")
    for value in (False, "off"):
        config.train.check_memory = value
        assert check_memory(config) == []
    config.train.check_memory = "maybe"
    with pytest.raises(UserError, match="train.check_memory='maybe' must be one of error, warn, off"):
        check_memory(config)
    config.train.check_memory = "error"
    monkeypatch.setattr(memory_check, "free_memory", lambda device: (GIB, "MemAvailable"))
    (line,) = check_memory(config)
    assert "1.07 GB are free (MemAvailable)" in line


def test_what_cannot_be_estimated_is_said(config, monkeypatch):
    config.model = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2}
    (line,) = check_memory(config)
    assert line.startswith("Memory: not estimated (UserError: Linear cannot be analysed")
    monkeypatch.setattr(memory_check, "free_memory", lambda device: None)
    assert check_memory(config) == ["Memory: not compared, this system does not say how much is free"]


@pytest.fixture
def host(tmp_path):
    """A host with 8 GiB available, and what writes a file below it."""

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", f"MemTotal: 99 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    write("proc/self/cgroup", "")
    return write, lambda: free_host_memory(tmp_path / "proc", tmp_path / "cgroup")


def test_the_host_alone(host):
    assert host[1]() == (8 * GIB, "MemAvailable")


def test_the_nearest_limit_of_version_2_counts(host):
    write, free = host
    write("proc/self/cgroup", "0::/job/step\n")
    for group, limit in (("job/step", "max"), ("job", str(4 * GIB))):
        write(f"cgroup/{group}/memory.max", limit)
        write(f"cgroup/{group}/memory.current", str(3 * GIB))
        write(f"cgroup/{group}/memory.stat", f"anon 1\ninactive_file {GIB}\n")
    left, source = free()
    assert left == 2 * GIB
    assert source.endswith(f"job/memory.max={4 * GIB}")


def test_version_1_and_a_path_that_is_not_there(host):
    write, free = host
    write("proc/self/cgroup", "7:cpu:/x\n5:memory:/outside\n")
    write("cgroup/memory/memory.limit_in_bytes", str(2 * GIB))
    write("cgroup/memory/memory.usage_in_bytes", str(GIB))
    write("cgroup/memory/memory.stat", "total_inactive_file 0\n")
    assert free()[0] == GIB


def test_no_linux(tmp_path):
    assert free_host_memory(tmp_path, tmp_path) is None
