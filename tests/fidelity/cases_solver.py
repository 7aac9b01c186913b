"""Learning-rate schedules and parameter groups of optimizers."""

from __future__ import annotations

import torch
from d2_access import d2_module
from fidelity.harness import case, error_of
from fvcore.common import param_scheduler as schedules
from torch import nn

from elsa_det import d2


def after_warmup() -> dict:
    return {
        "steps": schedules.MultiStepParamScheduler([1.0, 0.1, 0.01], milestones=[60, 80], num_updates=90),
        "cosine": schedules.CosineParamScheduler(1.0, 0.05),
        "linear": schedules.LinearParamScheduler(0.8, 0.0),
    }


WARMUPS = {
    "usual": {"warmup_factor": 0.001, "warmup_length": 0.1},
    "constant": {"warmup_factor": 0.3, "warmup_length": 0.2, "warmup_method": "constant"},
    "squeezed": {"warmup_factor": 0.01, "warmup_length": 0.25, "rescale_interval": True},
    "squeezed_constant": {
        "warmup_factor": 0.1,
        "warmup_length": 0.3,
        "warmup_method": "constant",
        "rescale_interval": True,
    },
    "none": {"warmup_factor": 0.5, "warmup_length": 0.0},
    "whole": {"warmup_factor": 0.5, "warmup_length": 1.0},
}


@case("WarmupParamScheduler", what="the factor at 61 points of training, for three schedules and six warmups; errors")
def warmup():
    points = [0.9999 * number / 60 for number in range(61)]
    out: dict = {}
    for kind in after_warmup():
        for name, arguments in WARMUPS.items():
            made = d2.WarmupParamScheduler(after_warmup()[kind], **arguments)
            out[f"{kind}_{name}"] = torch.tensor([made(point) for point in points], dtype=torch.float64)
    out["kind"] = [base.__name__ for base in d2.WarmupParamScheduler.__mro__]
    out["error"] = error_of(lambda: d2.WarmupParamScheduler(after_warmup()["steps"], 0.1, 0.1, "quadratic"))
    return out


def small_model() -> nn.Module:
    """A convolution, norms, a layer twice and one weight once more, a frozen one, a parameter of the model's own."""
    model = nn.Module()
    model.conv = nn.Conv2d(3, 4, 3)
    model.norm = nn.BatchNorm2d(4)
    model.inner = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True))
    model.again = model.inner[0]
    model.tied = nn.Linear(4, 4)
    model.tied.weight = model.inner[0].weight
    model.frozen = nn.Linear(2, 2)
    model.frozen.weight.requires_grad_(False)
    model.table = nn.Parameter(torch.zeros(3))
    return model


@case("WarmupParamScheduler", "hooks", what="rates of two groups over 12 iterations, resumed after 5; its state")
def rates_of_groups():
    multiplier = d2_module("solver").LRMultiplier
    out: dict = {}
    for kind in after_warmup():
        schedule = d2.WarmupParamScheduler(after_warmup()[kind], 0.1, 0.25)
        parameters = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.5, 2.0)]
        optimizer = torch.optim.SGD(parameters, lr=1.0, momentum=0.9)
        made = multiplier(optimizer, schedule, max_iter=12)
        rates = []
        for iteration in range(12):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            made.step()
            if iteration == 4:
                state = made.state_dict()
        resumed = multiplier(optimizer, schedule, max_iter=12)
        resumed.load_state_dict(state)
        out[kind] = {"rates": rates, "state": state, "resumed": [resumed.last_epoch, resumed.get_lr()]}
    out["error"] = error_of(lambda: multiplier(optimizer, torch.nn.Identity(), 12))
    return out


SETTINGS = {
    "plain": {},
    "rate": {"base_lr": 0.1},
    "decay": {"base_lr": 0.1, "weight_decay": 0.01, "weight_decay_norm": 0.0},
    "bias": {"base_lr": 0.1, "bias_lr_factor": 2.0, "weight_decay": 0.05, "weight_decay_bias": 0.0},
    "table": {"weight_decay": 0.02, "overrides": {"table": {"weight_decay": 0.0}}},
    "names": {"base_lr": 1.0, "lr_factor_func": len, "overrides": {"bias": {"momentum": 0.5}, "weight": {"lr": 3.0}}},
    "norm_only": {"weight_decay_norm": 0.3},
}


@case("get_default_optimizer_params", what="groups in their order, by names of parameters, for seven settings; errors")
def parameter_groups():
    out: dict = {}
    for name, arguments in SETTINGS.items():
        model = small_model()
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups = d2.get_default_optimizer_params(model, **arguments)
        out[name] = [
            {key: [names[p] for p in value] if key == "params" else value for key, value in sorted(group.items())}
            for group in groups
        ]
        torch.optim.SGD(groups, lr=0.1)  # it takes them
    out["errors"] = [
        error_of(lambda: d2.get_default_optimizer_params(small_model(), lr_factor_func=len)),
        error_of(lambda: d2.get_default_optimizer_params(small_model(), bias_lr_factor=2.0)),
        error_of(
            lambda: d2.get_default_optimizer_params(
                small_model(), 0.1, weight_decay_bias=0.0, overrides={"bias": {"lr": 1.0}}
            )
        ),
    ]
    return out
