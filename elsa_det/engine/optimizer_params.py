"""Parameter groups of recipes that decay some normalization layers and others not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..d2 import get_default_optimizer_params
from ..errors import UserError

_NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def optimizer_params_with_decayed_norms(
    model: nn.Module, decayed_norms: Sequence[str], **arguments: Any
) -> list[dict[str, Any]]:
    """Detectron2's ``get_default_optimizer_params`` with exceptions from ``weight_decay_norm``.

    Args:
        model: whose parameters.
        decayed_norms: what the names of modules start with, ``"roi_heads.box_head."`` say; the normalization layers
            among them get the weight decay of the optimizer, as all other parameters do.
        arguments: of ``get_default_optimizer_params``.

    Raises:
        UserError: nothing among the model's normalization layers is called so.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _NORM_LAYERS)}
    decayed = set()
    for prefix in decayed_norms:
        chosen = [parameter for name, m in norms.items() if name.startswith(prefix) for parameter in m.parameters()]
        if not chosen:
            raise UserError(
                f"optimizer.params.decayed_norms: no normalization layer of the model starts with {prefix!r}"
            )
        decayed.update(chosen)
    groups = []
    for group in get_default_optimizer_params(model, **arguments):
        kept = [parameter for parameter in group["params"] if parameter not in decayed]
        excepted = [parameter for parameter in group["params"] if parameter in decayed]
        if kept:
            groups.append({**group, "params": kept})
        if excepted:
            own = {key: value for key, value in group.items() if key != "weight_decay"}
            if arguments.get("weight_decay") is not None:
                own["weight_decay"] = arguments["weight_decay"]
            groups.append({**own, "params": excepted})
    return groups
