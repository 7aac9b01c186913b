"""The model that weights belong to, worked out from their names and shapes.

A file that mixes models, or lacks a part of one, does not have the names and shapes of any single model: the model that
its first weights speak of is built (without memory for its weights), and everything has to fit it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..d2 import (
    FPN,
    Box2BoxTransform,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    ShapeSpec,
    StandardRPNHead,
)
from ..modeling.backbone import ELSASwin, HierarchicalBackbone, Swin
from .conversion import check_shapes
from .reading import CheckpointError

#: stages of every published cascade
CASCADE_STAGES = 3

Shapes = Mapping[str, Tensor]


def _weight(weights: Shapes, key: str) -> torch.Size:
    if key not in weights:
        raise CheckpointError(f"the checkpoint has no {key}: it is incomplete, or of another architecture")
    return weights[key].shape


def _numbers(weights: Shapes, pattern: str) -> list[int]:
    """The numbers, each once and in order, that the group of ``pattern`` takes in the names."""
    return sorted({int(match.group(1)) for key in weights if (match := re.match(pattern, key))})


def _within(weights: Shapes, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def build_backbone(weights: Shapes) -> HierarchicalBackbone:
    """The ELSA-Swin or Swin, without memory for its weights, that a backbone's weights (our names) speak of.

    Raises:
        CheckpointError: a weight that tells a size is missing.
    """
    stages = range(max(_numbers(weights, r"layers\.(\d+)\."), default=-1) + 1)
    depths = [max(_numbers(weights, rf"layers\.{s}\.blocks\.(\d+)\."), default=-1) + 1 for s in stages]
    if not depths or not all(depths):
        raise CheckpointError(f"the checkpoint's backbone has {depths} blocks in its stages: it is incomplete")
    embed_dim, in_channels = _weight(weights, "patch_embed.proj.weight")[:2]
    first = "layers.0.blocks.0."
    settings: dict[str, Any] = {
        "embed_dim": embed_dim,
        "in_channels": in_channels,
        "depths": depths,
        "mlp_ratio": _weight(weights, f"{first}mlp.fc1.weight")[0] / embed_dim,
    }
    last_table = _weight(weights, f"layers.{stages[-1]}.blocks.0.attn.relative_position_bias_table")
    settings["window_size"] = (math.isqrt(last_table[0]) + 1) // 2
    if f"{first}attn.attn.0.weight" not in weights:
        tables = [_weight(weights, f"layers.{s}.blocks.0.attn.relative_position_bias_table") for s in stages]
        with torch.device("meta"):
            return Swin(
                num_heads=[table[1] for table in tables], qkv_bias=f"{first}attn.qkv.bias" in weights, **settings
            )
    kernel = _weight(weights, f"{first}attn.attn.0.weight")
    heads = [_weight(weights, f"layers.{s}.blocks.0.attn.attn.2.weight")[0] // kernel[-1] ** 2 for s in stages[:-1]]
    ghosts = weights[f"{first}attn.ghost_head"].shape[0] if f"{first}attn.ghost_head" in weights else 0
    with torch.device("meta"):
        return ELSASwin(
            num_heads=[*heads, last_table[1]],
            group_width=kernel[1],
            lam=float(ghosts > 1),
            gamma=float(ghosts > 0),
            qkv_bias=f"{first}attn.pre_proj.bias" in weights,
            **settings,
        )


def _norm(weights: Shapes, layer: str) -> str:
    if f"{layer}.norm.weight" not in weights:
        return ""
    return "BN" if f"{layer}.norm.running_mean" in weights else "GN"


def _outputs(weights: Shapes, prefix: str, numbers: list[int]) -> list[int]:
    return [_weight(weights, f"{prefix}{n}.weight")[0] for n in numbers]


def _rpn_head(weights: Shapes, channels: int) -> nn.Module:
    prefix = "proposal_generator.rpn_head."
    convs = _numbers(weights, rf"{re.escape(prefix)}conv\.conv(\d+)\.")
    dims = _outputs(weights, f"{prefix}conv.conv", convs) or [_weight(weights, f"{prefix}conv.weight")[0]]
    anchors = _weight(weights, f"{prefix}objectness_logits.weight")[0]
    codes = _weight(weights, f"{prefix}anchor_deltas.weight")[0]
    if codes != 4 * anchors:
        raise CheckpointError(
            f"{prefix}objectness_logits has {anchors} outputs for {codes / 4:g} anchors: the RPN was trained with a "
            "softmax over two classes, only one with a sigmoid can be used"
        )
    return StandardRPNHead(in_channels=channels, num_anchors=anchors, conv_dims=dims)


def _box_parts(weights: Shapes, stage: str, channels: int) -> tuple[FastRCNNConvFCHead, FastRCNNOutputLayers]:
    head, predictor = f"roi_heads.box_head{stage}.", f"roi_heads.box_predictor{stage}."
    convs, fcs = (_numbers(weights, rf"{re.escape(head)}{kind}(\d+)\.") for kind in ("conv", "fc"))
    conv_dims, fc_dims = _outputs(weights, f"{head}conv", convs), _outputs(weights, f"{head}fc", fcs)
    inputs = [channels, *conv_dims][-1]
    side = math.isqrt(_weight(weights, f"{head}fc{fcs[0]}.weight")[1] // inputs) if fcs else 7
    box_head = FastRCNNConvFCHead(
        ShapeSpec(channels=channels, height=side, width=side),
        conv_dims=conv_dims,
        fc_dims=fc_dims,
        conv_norm=_norm(weights, f"{head}conv{convs[0]}") if convs else "",
    )
    rows, codes = (_weight(weights, f"{predictor}{layer}.weight")[0] for layer in ("cls_score", "bbox_pred"))
    if codes == 4 * rows:
        raise CheckpointError(
            f"{predictor}bbox_pred has boxes for the background, too ({codes} outputs for {rows - 1} classes and the "
            f"background): {LAYOUT_1X}"
        )
    return box_head, FastRCNNOutputLayers(
        box_head.output_shape,
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        num_classes=rows - 1,
        cls_agnostic_bbox_reg=codes == 4,
    )


def _mask_head(weights: Shapes, stage: str, channels: int, num_classes: int) -> nn.Module:
    prefix = f"roi_heads.mask_head{stage}."
    convs = _numbers(weights, rf"{re.escape(prefix)}mask_fcn(\d+)\.")
    rows = _weight(weights, f"{prefix}predictor.weight")[0]
    if rows == num_classes + 1 and rows != 1:
        raise CheckpointError(
            f"{prefix}predictor has {rows} masks for {num_classes} classes, one for the background: {LAYOUT_1X}"
        )
    return MaskRCNNConvUpsampleHead(
        ShapeSpec(channels=channels, height=14, width=14),
        num_classes=1 if rows == 1 else num_classes,
        conv_dims=[*_outputs(weights, f"{prefix}mask_fcn", convs), _weight(weights, f"{prefix}deconv.weight")[1]],
        conv_norm=_norm(weights, f"{prefix}mask_fcn{convs[0]}") if convs else "",
    )


#: what is wrong with files of mmdetection 1.x
LAYOUT_1X = (
    "this is the layout of mmdetection 1.x, whose background is class 0 and whose boxes include their last pixel. "
    "Weights of mmdetection 2.x or 3.x are needed"
)


def build_detector(weights: Shapes) -> nn.Module:
    """A module with the names and shapes, without memory, of the Mask or Cascade Mask R-CNN that weights speak of.

    Raises:
        CheckpointError: a weight that tells a size is missing, stages of a cascade are missing, or the layout is that
            of mmdetection 1.x.
    """
    bottom_up = build_backbone(_within(weights, "backbone.bottom_up."))
    channels = _weight(weights, "backbone.fpn_output2.weight")[0]
    masks = any(key.startswith("roi_heads.mask_head.") for key in weights)
    stages = _cascade_stages(weights, masks)
    with torch.device("meta"):
        neck = FPN(bottom_up, list(bottom_up.output_shape()), channels, _norm(weights, "backbone.fpn_output2"))
        boxes = [_box_parts(weights, stage, channels) for stage in stages]
        classes = boxes[0][1].num_classes
        heads = {
            "box_head": [head for head, _ in boxes],
            "box_predictor": [predictor for _, predictor in boxes],
            "mask_head": [_mask_head(weights, stage, channels, classes) for stage in stages] if masks else [],
        }
        rpn = nn.ModuleDict({"rpn_head": _rpn_head(weights, channels)})
    roi_heads = nn.ModuleDict(
        {name: parts[0] if len(stages) == 1 else nn.ModuleList(parts) for name, parts in heads.items() if parts}
    )
    return nn.ModuleDict({"backbone": neck, "proposal_generator": rpn, "roi_heads": roi_heads})


def _cascade_stages(weights: Shapes, masks: bool) -> list[str]:
    """What follows the names of the heads: nothing, or the number of each stage of a cascade."""
    parts = ["box_head", "box_predictor", *(["mask_head"] if masks else [])]
    found = {part: _numbers(weights, rf"roi_heads\.{part}\.(\d+)\.") for part in parts}
    if not any(found.values()):
        return [""]
    wanted = list(range(CASCADE_STAGES))
    if any(numbers != wanted for numbers in found.values()):
        told = "; ".join(f"{part}: {', '.join(map(str, numbers)) or 'none'}" for part, numbers in found.items())
        raise CheckpointError(
            f"the checkpoint is of a cascade, but not of one whole cascade of stages 0, 1, 2. It has for {told}"
        )
    return [f".{number}" for number in wanted]


def num_classes(weights: Shapes) -> int | None:
    """Number of classes (without background) of a two-stage detector's weights; None if that cannot be told."""
    keys = [f"roi_heads.box_predictor{stage}.cls_score.weight" for stage in ("", ".0")]
    return next((weights[key].shape[0] - 1 for key in keys if key in weights), None)


def check_detector(weights: Shapes, description: str) -> None:
    """Raise unless these are the weights of one whole Mask R-CNN, Cascade Mask R-CNN or their forms without masks.

    Raises:
        CheckpointError: naming what is missing, too much, or of another shape than the rest tells.
    """
    check_shapes(
        build_detector(weights).state_dict(), weights, f"the checkpoint looks like {description}, but is not one whole"
    )


def check_backbone(weights: Shapes, description: str) -> None:
    """The same for a backbone; the norms of its outputs may be missing, as they are in a classifier.

    Raises:
        CheckpointError: as :func:`check_detector`.
    """
    expected = build_backbone(weights).state_dict()
    optional = {key for key in expected if re.match(r"norm\d+\.", key)}
    if not optional & weights.keys():
        expected = {key: value for key, value in expected.items() if key not in optional}
    check_shapes(expected, weights, f"the checkpoint looks like {description}, but is not one whole")
