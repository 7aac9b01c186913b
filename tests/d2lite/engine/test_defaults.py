"""The command line and the setup that commands share."""

from __future__ import annotations

import argparse
import logging
import random

import numpy as np
import pytest
import torch
from d2_access import d2_module
from omegaconf import OmegaConf
from torch import nn

from elsa_det import d2


def test_options_and_their_defaults():
    args = d2.default_argument_parser().parse_args([])
    assert vars(args) == {
        "config_file": "",
        "resume": False,
        "eval_only": False,
        "num_gpus": 1,
        "num_machines": 1,
        "machine_rank": 0,
        "dist_url": args.dist_url,
        "opts": [],
    }
    host, port = args.dist_url.rsplit(":", 1)
    assert host == "tcp://127.0.0.1"
    assert 49152 <= int(port) < 65536
    assert d2.default_argument_parser().parse_args([]).dist_url == args.dist_url


def test_changes_to_the_config_come_last():
    line = ["--num-gpus", "2", "--eval-only", "--config-file", "a.py", "train.seed=1", "--x"]
    args = d2.default_argument_parser("see the readme").parse_args(line)
    assert (args.num_gpus, args.eval_only, args.config_file) == (2, True, "a.py")
    assert args.opts == ["train.seed=1", "--x"]
    assert "see the readme" in d2.default_argument_parser("see the readme").format_help()


@pytest.fixture
def setup(monkeypatch):
    """``default_setup`` without its handlers on the loggers, which would outlive the test; with what it logs."""
    lines, calls = [], []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    def fake_setup_logger(output=None, distributed_rank=0, **kwargs):
        calls.append((output, distributed_rank, kwargs.get("name")))
        logger = logging.Logger("test", logging.DEBUG)
        logger.addHandler(Keep())
        return logger

    monkeypatch.setattr(d2_module("engine.defaults"), "setup_logger", fake_setup_logger)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)

    def run(cfg, **args):
        d2.default_setup(OmegaConf.create(cfg), argparse.Namespace(**args))
        return lines, calls

    return run


def test_setup_saves_the_config_and_logs(setup, tmp_path):
    out = str(tmp_path / "out")
    cfg = {"train": {"output_dir": out, "seed": 3, "cudnn_benchmark": True}, "x": 1}
    config_file = tmp_path / "cfg.py"
    config_file.write_text("answer = 42\n")
    lines, calls = setup(cfg, config_file=str(config_file))
    assert calls == [(out, 0, "fvcore"), (out, 0, None)]
    saved = OmegaConf.load(tmp_path / "out" / "config.yaml")
    assert saved.x == 1
    assert saved.train.seed == 3
    text = "\n".join(lines)
    for part in ("Rank of current process: 0. World size: 1", "Environment info", "Command line", str(config_file)):
        assert part in text
    assert "42" in text
    assert torch.backends.cudnn.benchmark is True


def test_setup_seeds_all_generators(setup):
    draws = []
    for seed in (3, 3, 4, -1):
        setup({"train": {"seed": seed}})
        draws.append((np.random.rand(), random.random(), torch.rand(()).item()))
    assert draws[0] == draws[1]
    assert draws[0] == pytest.approx((0.5507979025745755, 0.23796462709189137, 0.004263520240783691))
    assert len(set(draws)) == 3


def test_setup_for_evaluation_leaves_cudnn_alone(setup):
    setup({"train": {"cudnn_benchmark": True}}, eval_only=True)
    assert torch.backends.cudnn.benchmark is False


def test_writers(tmp_path):
    writers = d2.default_writers(str(tmp_path / "new"), 100)
    assert [type(writer) for writer in writers] == [d2.CommonMetricPrinter, d2.JSONWriter, d2.TensorboardXWriter]
    with d2.EventStorage() as storage:
        storage.put_scalar("total_loss", 1.5)
        writers[1].write()
    for writer in writers:
        writer.close()
    assert (tmp_path / "new" / "metrics.json").read_text() == '{"iteration": 0, "total_loss": 1.5}\n'


def test_one_process_needs_no_ddp():
    model = nn.Linear(1, 1)
    assert d2.create_ddp_model(model, broadcast_buffers=False) is model
