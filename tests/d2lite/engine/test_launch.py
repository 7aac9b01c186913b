"""Starting processes, and what they do together, over Gloo on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from d2_access import d2_module
from torch import nn

from elsa_det import d2


def test_one_process_runs_right_here():
    seen = []
    d2.launch(lambda *args: seen.append((args, d2.comm.get_world_size())), 1, args=(1, "a"))
    assert seen == [((1, "a"), 1)]


def test_auto_address_is_for_one_machine():
    with pytest.raises((ValueError, AssertionError), match="auto"):
        d2.launch(print, 1, num_machines=2, dist_url="auto")


def test_default_timeout():
    assert d2_module("engine.launch").DEFAULT_TIMEOUT.total_seconds() == 1800


class Mean(d2.DatasetEvaluator):
    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += outputs

    def evaluate(self):
        everyone = d2.comm.gather(self.seen)
        return {"mean": {"value": sum(sum(seen) for seen in everyone)}} if d2.comm.is_main_process() else None


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return {"loss": self.w * x} if self.training else [value * 2 for value in x]


def worker(folder: str) -> None:
    rank = d2.comm.get_rank()
    # device_ids=None is what a model on the CPU needs; d2lite finds that out by itself
    ddp = d2.create_ddp_model(Weighted(), **({"device_ids": None} if d2.PROVIDER == d2.UPSTREAM else {}))
    trainer = d2.SimpleTrainer(ddp, [1.0 + 2 * rank], torch.optim.SGD(ddp.parameters(), lr=0.1))
    trainer.train(0, 1)
    latest = trainer.storage.latest()
    evaluators = d2.DatasetEvaluators([Mean()])
    report = {
        "world": [d2.comm.get_world_size(), d2.comm.get_local_rank(), d2.comm.get_local_size()],
        "w": ddp.module.w.item(),
        "total_loss": latest["total_loss"][0] if "total_loss" in latest else None,
        "results": d2.inference_on_dataset(ddp.module, [[10 + rank], [20]], evaluators),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(report))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_two_processes_train_and_evaluate_together(tmp_path):
    d2.launch(worker, 2, dist_url="auto", args=(str(tmp_path),))
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (main["world"], other["world"]) == ([2, 0, 2], [2, 1, 2])
    # gradients 1 and 3: w = 1 - 0.1·2; losses 1 and 3, recorded by the main process
    assert main["w"] == other["w"] == pytest.approx(0.8)
    assert (main["total_loss"], other["total_loss"]) == (2.0, None)
    # 2·(10 + 20) + 2·(11 + 20)
    assert main["results"] == {"mean": {"value": 122}}
    assert other["results"] == {}
