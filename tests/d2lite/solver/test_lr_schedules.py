"""Learning rates over training."""

from __future__ import annotations

import pytest
import torch
from d2_access import d2_module
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler

from elsa_det.d2 import WarmupParamScheduler


def rates(multiplier, steps, max_iter, base=(1.0,)):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in base]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    scheduler = d2_module("solver").LRMultiplier(optimizer, multiplier, max_iter=max_iter)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found, scheduler


def test_warmup_and_steps():
    steps = MultiStepParamScheduler([1, 0.1, 0.01], milestones=[10, 15], num_updates=20)
    found, scheduler = rates(WarmupParamScheduler(steps, 0.001, 5 / 20), 20, 20, base=(5.0, 1.0))
    # 0.001 rising to 1 over five iterations, then 1 until 10, 0.1 until 15, 0.01
    expected = [0.001 + 0.999 * i / 5 for i in range(5)] + [1.0] * 5 + [0.1] * 5 + [0.01] * 5
    torch.testing.assert_close(torch.tensor(found), torch.tensor([[5 * rate, rate] for rate in expected]))
    assert scheduler.state_dict() == {"base_lrs": [5.0, 1.0], "last_epoch": 20}


def test_cosine_joined_in_its_course_or_squeezed():
    cosine = CosineParamScheduler(1, 0)
    joined, squeezed = (WarmupParamScheduler(cosine, 0.1, 0.5, "linear", rescale) for rescale in (False, True))
    assert [round(joined(i / 4), 6) for i in range(4)] == [0.1, 0.3, 0.5, 0.146447]  # warms up to cosine(0.5) = 0.5
    assert [round(squeezed(i / 4), 6) for i in range(4)] == [0.1, 0.55, 1.0, 0.5]


def test_constant_warmup_and_unknown_one():
    steps = MultiStepParamScheduler([1, 0.1], milestones=[6], num_updates=10)
    constant = WarmupParamScheduler(steps, 0.25, 0.2, "constant")
    assert [constant(i / 10) for i in range(8)] == [0.25, 0.25, 1, 1, 1, 1, 0.1, 0.1]
    with pytest.raises(ValueError, match=r"quadratic|warmup"):
        WarmupParamScheduler(steps, 0.25, 0.2, "quadratic")


def test_multiplier_is_checked():
    with pytest.raises(ValueError, match="ParamScheduler"):
        rates(lambda where: 1.0, 1, 1)
