"""Published ImageNet weights of ELSA-Swin and Swin, and their names in elsa_det."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..modeling.backbone import ELSA_SWIN_VARIANTS, SWIN_VARIANTS
from .reading import CheckpointError, unwrap_state_dict

_BUFFERS = {
    "attn.relative_id": "an index that elsa_det computes",
    "attn.relative_position_index": "an index that elsa_det computes",
    "attn_mask": "a mask that elsa_det computes for any size",
}
_CLASSIFIER = {
    "norm.": "the classifier's last norm, which a dense backbone has no use for",
    "head.": "the classifier, which a dense backbone has no use for",
}


@dataclass
class BackboneConversion:
    """Converted weights, and what of the published file was left over: its key and why."""

    state_dict: dict[str, Tensor] = field(default_factory=dict)
    left_over: dict[str, str] = field(default_factory=dict)


def convert_backbone_state_dict(published: Mapping[str, Any]) -> dict[str, Tensor]:
    """Published ELSA-Swin or Swin weights to the names and layouts of :class:`elsa_det.modeling.ELSASwin` / ``Swin``.

    Args:
        published: a checkpoint as loaded: bare weights, or under ``state_dict``, ``state_dict_ema`` or ``model``; keys
            may carry ``module.``, and ``backbone.`` where they come from a whole detector. ELSA's release, Microsoft's
            Swin and timm's Swin (either place of the patch merging) are understood; weights already in elsa_det's names
            pass through.

    Returns:
        The backbone's weights. A classifier has no ``norm0``..``norm3``: those keep their identity initialisation.

    Raises:
        CheckpointError: the weights are not those of an ELSA-Swin or Swin.
    """
    return convert_backbone(published).state_dict


def convert_backbone(published: Mapping[str, Any]) -> BackboneConversion:
    """As :func:`convert_backbone_state_dict`, with an account of what was left over."""
    source = unwrap_state_dict(published)
    result = BackboneConversion()
    for prefix in ("backbone.bottom_up.", "backbone."):
        if any(key.startswith(f"{prefix}patch_embed.") for key in source):
            result.left_over.update({key: "not of the backbone" for key in source if not key.startswith(prefix)})
            source = {key.removeprefix(prefix): value for key, value in source.items() if key.startswith(prefix)}
            break
    if "patch_embed.proj.weight" not in source or not any(key.startswith("layers.") for key in source):
        raise CheckpointError(
            f"these are not the weights of an ELSA-Swin or Swin backbone: the first keys are {list(source)[:5]}, "
            "expected patch_embed.proj.weight and layers.*"
        )
    last = max(int(key.split(".")[1]) for key in source if re.match(r"layers\.\d+\.", key))
    merging_moved = any(key.startswith(f"layers.{last}.downsample.") for key in source)  # timm >= 0.9
    for key, value in source.items():
        reason = _why_left_over(key)
        if reason is not None:
            result.left_over[key] = reason
            continue
        block, _, _ = key.partition(".attn.")
        if f"{block}.attn.rb" in source:
            key, value = _from_elsa_window_attention(key, value)
        if merging_moved and ".downsample." in key:
            stage = int(key.split(".")[1])
            key = f"layers.{stage - 1}." + key.split(".", 2)[2]
        result.state_dict[key] = value
    return result


def _why_left_over(key: str) -> str | None:
    for suffix, reason in _BUFFERS.items():
        if key.endswith(suffix):
            return reason
    return next((reason for prefix, reason in _CLASSIFIER.items() if key.startswith(prefix)), None)


def _from_elsa_window_attention(key: str, value: Tensor) -> tuple[str, Tensor]:
    """ELSA's release: ``pre_proj`` in the order v, q, k; the bias table heads first, by offset key - query (Swin: the
    negative, which is the table read backwards)."""
    if key.endswith(".attn.rb"):
        return key.removesuffix("rb") + "relative_position_bias_table", value.t().flip(0).contiguous()
    if ".attn.pre_proj." in key:
        v, q, k = value.chunk(3)
        return key.replace(".attn.pre_proj.", ".attn.qkv."), torch.cat([q, k, v])
    return key.replace(".attn.post_proj.", ".attn.proj."), value


def describe_backbone(state_dict: Mapping[str, Tensor]) -> str:
    """What a backbone's weights (in elsa_det's names) look like, for messages: "ELSA-Swin-T (embed_dim 96, …)"."""
    depths: dict[int, int] = {}
    group_width = None
    for key, value in state_dict.items():
        if match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key):
            stage, block = map(int, match.groups())
            depths[stage] = max(depths.get(stage, 0), block + 1)
        if key == "layers.0.blocks.0.attn.attn.0.weight":
            group_width = value.shape[1]
    patches = state_dict.get("patch_embed.proj.weight")
    facts = {
        "embed_dim": None if patches is None else patches.shape[0],
        "depths": tuple(depths[stage] for stage in sorted(depths)),
    }
    kind, variants = "Swin", SWIN_VARIANTS
    if group_width is not None:
        kind, variants = "ELSA-Swin", ELSA_SWIN_VARIANTS
        facts["group_width"] = group_width
    size = next((name for name, v in variants.items() if all(v[key] == facts[key] for key in facts)), None)
    letter = {"tiny": "-T", "small": "-S", "base": "-B", "nano": "-nano", None: " of no published size"}[size]
    return f"{kind}{letter} ({', '.join(f'{key} {value}' for key, value in facts.items())})"
