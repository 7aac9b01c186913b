"""Published two-stage detectors on ELSA-Swin and Swin, and their names in elsa_det."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from .backbone import convert_backbone, describe_backbone, to_published_backbone
from .conversion import Conversion, check_finite, listed
from .detector_names import to_mmdetection, to_ours
from .reading import CheckpointError, unwrap_state_dict
from .structure import LAYOUT_1X, check_detector, num_classes

_BOTTOM_UP = "backbone.bottom_up."

#: parts of a detector that can be taken alone, and where they are in the model
PARTS = {
    "backbone": (_BOTTOM_UP,),
    "neck": ("backbone.fpn_",),
    "rpn": ("proposal_generator.",),
    "box_head": ("roi_heads.box_head.", "roi_heads.box_predictor."),
    "mask_head": ("roi_heads.mask_head.",),
    "roi_heads": ("roi_heads.",),
}

# What published detectors hold beside weights, by the start of the name.
_BESIDE = {
    "data_preprocessor.": "pixel statistics, which the config sets",
    "pixel_mean": "pixel statistics, which the config sets",
    "pixel_std": "pixel statistics, which the config sets",
    "ema_": "the weights before averaging, which the file holds beside their average",
    "proposal_generator.anchor_generator.cell_anchors.": "anchors, which elsa_det computes",
}


def is_mmdetection(keys: Collection[str]) -> bool:
    """Whether these are mmdetection's names of a two-stage detector."""
    return any(key.startswith("rpn_head.") for key in keys)


def is_detectron2(keys: Collection[str]) -> bool:
    """Whether these are Detectron2's names, which are ours, of a two-stage detector."""
    return any(key.startswith(("proposal_generator.", "roi_heads.")) for key in keys)


def convert_detector_state_dict(published: Mapping[str, Any]) -> dict[str, Tensor]:
    """A published Mask R-CNN or Cascade Mask R-CNN on ELSA-Swin or Swin, in the names of elsa_det and Detectron2.

    Args:
        published: a checkpoint of mmdetection 2.x or 3.x as loaded: bare weights, or under ``state_dict``; keys may
            carry ``module.``. The backbone may have any of the names of :func:`convert_backbone_state_dict`. Weights in
            elsa_det's names pass through. Forms without mask heads are understood, too.

    Returns:
        All the weights of the model: ``backbone.bottom_up.*``, ``backbone.fpn_*``, ``proposal_generator.rpn_head.*``,
        ``roi_heads.*``, the heads of a cascade with the number of the stage.

    Raises:
        CheckpointError: another architecture, not all the parts of one model, parts of several, the layout of
            mmdetection 1.x, or weights that are NaN or infinite.
    """
    return convert_detector(published).state_dict


def convert_detector(published: Mapping[str, Any]) -> Conversion:
    """As :func:`convert_detector_state_dict`, with an account of every key."""
    source = unwrap_state_dict(published)
    _refuse_1x(published, source)
    if not (is_mmdetection(source) or is_detectron2(source)):
        raise CheckpointError(
            f"these are not the weights of a two-stage detector: there is neither rpn_head.* (mmdetection) nor "
            f"proposal_generator.* (Detectron2) among the keys, which start with {listed(source)}"
        )
    backbone = {key: value for key, value in source.items() if _is_of_backbone(key)}
    if not any(".patch_embed." in key for key in backbone):
        raise CheckpointError(
            "the detector's backbone is neither an ELSA-Swin nor a Swin: it has no patch_embed.*, but "
            f"{listed(backbone) or 'no weights at all'}. Parts that elsa_det's models have, too, can be taken from "
            "the file with tools/convert_checkpoint.py --parts"
        )
    result, unknown = rename_heads(source)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} weights have no counterpart in a Mask R-CNN or Cascade Mask R-CNN of elsa_det: "
            f"{listed(unknown)}. The checkpoint is of another architecture"
        )
    bottom_up = convert_backbone(backbone)
    for key, name in bottom_up.renamed.items():
        result.add(key, _BOTTOM_UP + name, bottom_up.state_dict[name])
    result.left_over.update(bottom_up.left_over)
    check_finite({key: source[key] for key in result.renamed})
    result.kind = describe_detector(result.state_dict)
    check_detector(result.state_dict, result.kind)
    return result


def rename_heads(source: Mapping[str, Tensor]) -> tuple[Conversion, list[str]]:
    """The neck, the RPN and the heads in our names, and the keys that are neither of these nor known to be no weights.

    The backbone is left out of both.
    """
    result, unknown = Conversion(), []
    for key, value in source.items():
        if _is_of_backbone(key):
            continue
        if reason := next((reason for start, reason in _BESIDE.items() if key.startswith(start)), None):
            result.left_over[key] = reason
        elif name := key if _is_ours(key) else to_ours(key):
            result.add(key, name, value)
        else:
            unknown.append(key)
    return result, unknown


def _is_ours(key: str) -> bool:
    return key.startswith(("backbone.fpn_", "proposal_generator.rpn_head.", "roi_heads."))


def _is_of_backbone(key: str) -> bool:
    return key.startswith("backbone.") and not key.startswith("backbone.fpn_")


def _refuse_1x(published: Mapping[str, Any], source: Mapping[str, Tensor]) -> None:
    """mmdetection 1.x: heads that are not in a ``roi_head``, or a version that says so."""
    meta = published.get("meta")
    version = str(meta.get("mmdet_version", "")) if isinstance(meta, Mapping) else ""
    heads = [key for key in source if key.startswith(("bbox_head.", "mask_head."))]
    if version.startswith(("0.", "1.")):
        raise CheckpointError(f"the checkpoint was written by mmdetection {version}: {LAYOUT_1X}")
    if heads and is_mmdetection(source):
        raise CheckpointError(f"{listed(heads)} are not in a roi_head: {LAYOUT_1X}")


def describe_detector(state_dict: Mapping[str, Tensor]) -> str:
    """What a detector's weights (our names) look like: "Cascade Mask R-CNN, 80 classes, on ELSA-Swin-T (…)"."""
    cascade = "Cascade " if any(key.startswith("roi_heads.box_predictor.0.") for key in state_dict) else ""
    masks = any(key.startswith("roi_heads.mask_head.") for key in state_dict)
    family = "Mask R-CNN" if masks else "R-CNN" if cascade else "Faster R-CNN"
    bottom_up = {key.removeprefix(_BOTTOM_UP): value for key, value in state_dict.items() if key.startswith(_BOTTOM_UP)}
    classes = num_classes(state_dict)
    told = "" if classes is None else f", {classes} classes"
    backbone = describe_backbone(bottom_up) if "patch_embed.proj.weight" in bottom_up else "another backbone"
    return f"{cascade}{family}{told}, on {backbone}"


def take_parts(published: Mapping[str, Any], parts: Sequence[str]) -> Conversion:
    """Parts of any two-stage detector with mmdetection's or Detectron2's names, whatever its backbone.

    Args:
        published: a checkpoint as loaded; arrays of a Detectron2 ``.pkl`` file may stand in for tensors.
        parts: from :data:`PARTS`; "backbone" only of an ELSA-Swin or Swin.

    Returns:
        These parts' weights in our names; everything else is left over, with the reason.

    Raises:
        CheckpointError: no such part in the file, an unknown part, or weights that are NaN or infinite.
    """
    if wrong := [part for part in parts if part not in PARTS]:
        raise CheckpointError(f"there is no part {', '.join(wrong)}: choose from {', '.join(PARTS)}")
    source = unwrap_state_dict(published)
    _refuse_1x(published, source)
    result, unknown = rename_heads(source)
    result.left_over.update(dict.fromkeys(unknown, "no counterpart in elsa_det's detectors"))
    backbone = {key: value for key, value in source.items() if _is_of_backbone(key)}
    if "backbone" in parts:
        bottom_up = convert_backbone(backbone)
        for key, name in bottom_up.renamed.items():
            result.add(key, _BOTTOM_UP + name, bottom_up.state_dict[name])
        result.left_over.update(bottom_up.left_over)
    else:
        result.left_over.update(dict.fromkeys(backbone, "not of the parts asked for"))
    starts = tuple(start for part in parts for start in PARTS[part])
    for key, name in list(result.renamed.items()):
        if not name.startswith(starts):
            drop(result, key, "not of the parts asked for")
    for part in parts:
        if not any(name.startswith(PARTS[part]) for name in result.state_dict):
            raise CheckpointError(f"the checkpoint has no {part}: its keys start with {listed(source)}")
    check_finite({key: source[key] for key in result.renamed})
    result.kind = f"{', '.join(parts)} of a detector"
    return result


def drop(conversion: Conversion, key: str, reason: str) -> None:
    """Leave a published key out of a conversion after all."""
    del conversion.state_dict[conversion.renamed.pop(key)]
    conversion.left_over[key] = reason


def to_mmdetection_state_dict(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of :func:`convert_detector_state_dict`: names and layouts of the ELSA release, mmdetection 2.x.

    Args:
        ours: the weights of a Mask or Cascade Mask R-CNN on ELSA-Swin or Swin in elsa_det's names. Swin comes out in
            the names of Microsoft's detectors.

    Returns:
        The weights; buffers that models compute themselves (position indices) are not among them.

    Raises:
        CheckpointError: a weight has no name in mmdetection.
    """
    bottom_up = {key.removeprefix(_BOTTOM_UP): value for key, value in ours.items() if key.startswith(_BOTTOM_UP)}
    result = {f"backbone.{key}": value for key, value in to_published_backbone(bottom_up).items()}
    for key, value in ours.items():
        if key.startswith(_BOTTOM_UP):
            continue
        name = to_mmdetection(key)
        if name is None:
            raise CheckpointError(
                f"{key} has no name in mmdetection: only Mask and Cascade Mask R-CNN can be turned back"
            )
        result[name] = value
    return result
