"""Parameter groups with their own learning rates and weight decays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

__all__ = ["get_default_optimizer_params"]

_NORM_LAYERS = (
    nn.modules.batchnorm._NormBase,  # batch norms (synchronized ones too) and instance norms
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters in groups that share hyperparameters, ready for an optimizer.

    Args:
        model: whose parameters; each appears once, and those without gradient do not.
        base_lr: learning rate of every parameter; None leaves it to the optimizer.
        weight_decay: weight decay of every parameter; None leaves it to the optimizer.
        weight_decay_norm: weight decay of the parameters of normalization layers.
        bias_lr_factor: factor on ``base_lr`` for parameters called ``bias``.
        weight_decay_bias: weight decay of parameters called ``bias``.
        lr_factor_func: factor on ``base_lr`` from the parameter's full name, such as
            ``backbone.stages.0.norm.weight``; a parameter of the model itself is ``.name``.
        overrides: hyperparameters by the parameter's own name, such as
            ``{"relative_position_bias_table": {"weight_decay": 0.0}}``; they have the last word.

    Raises:
        ValueError: a factor without ``base_lr``; or ``overrides`` names ``bias`` beside the arguments for it.
    """
    if base_lr is None and lr_factor_func is not None:
        raise ValueError("lr_factor_func requires base_lr: there is no learning rate to multiply.")
    by_name = {name: dict(values) for name, values in (overrides or {}).items()}
    for_bias: dict[str, float] = {}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError(
                f"bias_lr_factor={bias_lr_factor} requires base_lr: there is no learning rate to multiply."
            )
        for_bias["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        for_bias["weight_decay"] = weight_decay_bias
    if for_bias:
        if "bias" in by_name:
            raise ValueError("overrides has 'bias', which bias_lr_factor or weight_decay_bias set already: use one.")
        by_name["bias"] = for_bias

    # Groups come in the order in which their hyperparameters first occur. A saved optimizer state relies on it.
    groups: dict[tuple[tuple[str, float], ...], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            values: dict[str, float] = {}
            if base_lr is not None:
                values["lr"] = base_lr
            if weight_decay is not None:
                values["weight_decay"] = weight_decay
            if weight_decay_norm is not None and isinstance(module, _NORM_LAYERS):
                values["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                values["lr"] *= lr_factor_func(f"{module_name}.{name}")
            values.update(by_name.get(name, {}))
            groups.setdefault(tuple(values.items()), []).append(parameter)
    return [{**dict(values), "params": parameters} for values, parameters in groups.items()]
