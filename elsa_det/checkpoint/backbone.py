"""Published ImageNet weights of ELSA-Swin and Swin, and their names in elsa_det."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..modeling.backbone import ELSA_SWIN_VARIANTS, SWIN_VARIANTS
from .conversion import Conversion, check_finite
from .mmdet_swin import from_mmdet_swin, is_mmdet_swin
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


def convert_backbone_state_dict(published: Mapping[str, Any]) -> dict[str, Tensor]:
    """Published ELSA-Swin or Swin weights to the names and layouts of :class:`elsa_det.modeling.ELSASwin` / ``Swin``.

    Args:
        published: a checkpoint as loaded: bare weights, or under ``state_dict``, ``state_dict_ema`` or ``model``; keys
            may carry ``module.``, and ``backbone.`` where they come from a whole detector. ELSA's release, Microsoft's
            Swin, timm's Swin (either place of the patch merging) and mmdetection's Swin are understood; weights already
            in elsa_det's names pass through.

    Returns:
        The backbone's weights. A classifier has no ``norm0``..``norm3``: those keep their identity initialisation.

    Raises:
        CheckpointError: the weights are not those of an ELSA-Swin or Swin, or are NaN or infinite.
    """
    return convert_backbone(published).state_dict


def convert_backbone(published: Mapping[str, Any]) -> Conversion:
    """As :func:`convert_backbone_state_dict`, with an account of every key."""
    source = unwrap_state_dict(published)
    prefixes = ("backbone.bottom_up.", "backbone.")
    prefix = next((p for p in prefixes if any(key.startswith(f"{p}patch_embed.") for key in source)), "")
    result = Conversion(left_over={key: "not of the backbone" for key in source if not key.startswith(prefix)})
    named = {key: (key.removeprefix(prefix), value) for key, value in source.items() if key.startswith(prefix)}
    if is_mmdet_swin([name for name, _ in named.values()]):
        named = {key: from_mmdet_swin(name, value) for key, (name, value) in named.items()}
    names = {name for name, _ in named.values()}
    if "patch_embed.proj.weight" not in names or not any(re.match(r"layers\.\d+\.", name) for name in names):
        raise CheckpointError(
            f"these are not the weights of an ELSA-Swin or Swin backbone: the first keys are {list(source)[:5]}, "
            "expected patch_embed.proj.weight and layers.*"
        )
    last = max(int(name.split(".")[1]) for name in names if re.match(r"layers\.\d+\.", name))
    merging_moved = any(name.startswith(f"layers.{last}.downsample.") for name in names)  # timm >= 0.9
    for key, (name, value) in named.items():
        reason = _why_left_over(name)
        if reason is not None:
            result.left_over[key] = reason
            continue
        block, _, _ = name.partition(".attn.")
        if f"{block}.attn.rb" in names:
            name, value = _from_elsa_window_attention(name, value)
        if merging_moved and ".downsample." in name:
            stage = int(name.split(".")[1])
            name = f"layers.{stage - 1}." + name.split(".", 2)[2]
        result.add(key, name, value)
    check_finite({key: source[key] for key in result.renamed})
    result.kind = describe_backbone(result.state_dict)
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


def to_published_backbone(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of :func:`convert_backbone_state_dict`: names and layouts of ELSA's release, or of Microsoft's Swin.

    Buffers that models compute themselves (position indices) are not among the weights.
    """
    if not any(".attn.pre_proj." in key for key in ours):
        return dict(ours)
    return dict(_to_elsa_window_attention(key, value) for key, value in ours.items())


def _to_elsa_window_attention(key: str, value: Tensor) -> tuple[str, Tensor]:
    if key.endswith(".attn.relative_position_bias_table"):
        return key.removesuffix("relative_position_bias_table") + "rb", value.flip(0).t().contiguous()
    if ".attn.qkv." in key:
        q, k, v = value.chunk(3)
        return key.replace(".attn.qkv.", ".attn.pre_proj."), torch.cat([v, q, k])
    return key.replace(".attn.proj.", ".attn.post_proj."), value


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
