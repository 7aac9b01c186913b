"""Accumulation, early stopping, the moving average and the check of metrics in two processes, over Gloo on the CPU."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from elsa_det import d2
from elsa_det.engine.accumulation import AccumulatingTrainer
from elsa_det.engine.ema import ModelEMA
from elsa_det.engine.keep_best import EarlyStopping, TrainingStopped, require_metrics
from elsa_det.errors import UserError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))

    def forward(self, batch):
        return {"loss": self.net(batch).square().mean()}


def images():
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(1))


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()]).tolist()


def accumulate(rank):
    """The gradients of a step of two passes, and how often they were exchanged."""
    model = Regression()
    ddp = d2.create_ddp_model(model, **({"device_ids": None} if d2.PROVIDER == d2.UPSTREAM else {}))
    exchanges: list[int] = []
    ddp.register_comm_hook(exchanges, _count_and_average)
    own = list(images()[4 * rank : 4 * rank + 4].chunk(2))
    AccumulatingTrainer(ddp, own, torch.optim.SGD(model.parameters(), lr=0.1), accumulate=2).train(0, 1)
    return [gradients(model), len(exchanges)]


def _count_and_average(exchanges, bucket):
    exchanges.append(1)
    return torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda f: f.value()[0] / 2)


def stop(main):
    """Where a run ends whose metric, and the state of whose checkpoint, only the main process knows."""
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = d2.SimpleTrainer(model, [images()] * 20, optimizer)
    stopping = EarlyStopping(2, "toy/AP", patience=2)
    results = iter([1.0, 2.0, 1.5, 1.9, 1.0])
    evaluate = d2.hooks.EvalHook(2, lambda: {"toy": {"AP": next(results)}} if main else {})
    trainer.register_hooks([evaluate, stopping])
    if main:
        stopping.load_state_dict({"metric": "toy/AP", "mode": "max", "best": 1.2, "waited": 0})
    try:
        trainer.train(0, 20)
    except TrainingStopped:
        return [trainer.iter, stopping.best, stopping.waited]
    return "not stopped"


def complain(main):
    try:
        require_metrics({"toy": {"AP": 1.0}} if main else {}, {"train.best.metric": "toy/AP50"})
    except UserError as error:
        return str(error)
    return "no complaint"


def average(main):
    """The moving average after a checkpoint that only the main process could read."""
    ema = ModelEMA(nn.Linear(1, 1), 0.9)
    if main:
        ema.checkpointable.load_state_dict({"weight": torch.tensor([[3.0]]), "bias": torch.tensor([4.0])})
    ema.settle_after_resume("x.pth")
    return [ema.model.weight.item(), ema.model.bias.item()]


def worker(folder: str) -> None:
    logging.disable(logging.WARNING)
    rank, main = d2.comm.get_rank(), d2.comm.is_main_process()
    report = [accumulate(rank), stop(main), complain(main), average(main)]
    Path(folder, f"{rank}.json").write_text(json.dumps(report))


def test_two_processes_agree(tmp_path):
    d2.launch(worker, 2, dist_url="auto", args=(str(tmp_path),))
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert main == other
    (gradient, exchanges), stopped, complaint, averaged = main
    whole = Regression()
    whole(images())["loss"].backward()
    assert gradient == pytest.approx(gradients(whole), abs=1e-6)  # of the eight images together
    assert exchanges == 1
    # 2.0 is better than 1.2, 1.0 before it and the two after it are not
    assert stopped == [7, 2.0, 2]
    assert complaint == "train.best.metric=toy/AP50: the evaluation has no metric 'toy/AP50'; did you mean toy/AP?"
    assert averaged == [3.0, 4.0]
