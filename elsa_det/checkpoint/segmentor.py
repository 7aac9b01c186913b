"""Published UPerNets on ELSA-Swin and Swin, and their names in elsa_det."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.semantic import FCNHead, Segmentor, UPerHead
from .backbone import convert_backbone, describe_backbone
from .conversion import Conversion, check_finite, check_shapes, listed
from .reading import CheckpointError, unwrap_state_dict
from .structure import build_backbone

_DECODE, _AUXILIARY, _BACKBONE = "decode_head.", "auxiliary_head.", "backbone."

# mmsegmentation's modules (0.x and 1.x alike) and ours; the classifier is a plain convolution, every other module holds
# a convolution and its norm.
_MODULES = {
    _DECODE: (
        (r"conv_seg", r"predictor"),
        (r"psp_modules\.(\d+)\.1", r"pooling.\1"),
        (r"bottleneck", r"pooling_fusion"),
        (r"lateral_convs\.(\d+)", r"lateral_convs.\1"),
        (r"fpn_convs\.(\d+)", r"output_convs.\1"),
        (r"fpn_bottleneck", r"fusion"),
    ),
    _AUXILIARY: (
        (r"conv_seg", r"predictor"),
        (r"convs\.(\d+)", r"convs.\1"),
        (r"conv_cat", r"conv_cat"),
    ),
}
_BESIDE = {
    "data_preprocessor.": "pixel statistics, which the config sets",
    "ema_": "the weights before averaging, which the file holds beside their average",
}


def is_segmentor(keys: Collection[str]) -> bool:
    """Whether these are names of a segmentor, ours or published."""
    return any(key.startswith(_DECODE) for key in keys)


def is_published_segmentor(keys: Collection[str]) -> bool:
    """Whether these are mmsegmentation's names of a segmentor."""
    return any(key.startswith(f"{_DECODE}conv_seg.") for key in keys)


def convert_segmentor_state_dict(published: Mapping[str, Any]) -> dict[str, Tensor]:
    """A published UPerNet on ELSA-Swin or Swin, in the names and layouts of :class:`elsa_det.modeling.Segmentor`.

    Args:
        published: a checkpoint of mmsegmentation 0.x or 1.x as loaded: bare weights, or under ``state_dict``; keys may
            carry ``module.``. The backbone may have any of the names of :func:`convert_backbone_state_dict`, the
            auxiliary head may be missing, and so may the backbone. Weights in elsa_det's names pass through.

    Returns:
        ``backbone.*``, ``decode_head.*`` (:class:`elsa_det.modeling.UPerHead`) and ``auxiliary_head.*``
        (:class:`elsa_det.modeling.FCNHead`), as far as the file has them, each of them whole.

    Raises:
        CheckpointError: another architecture, a part that is not whole, parts of several models, or weights that are
            NaN or infinite.
    """
    return convert_segmentor(published).state_dict


def convert_segmentor(published: Mapping[str, Any]) -> Conversion:
    """As :func:`convert_segmentor_state_dict`, with an account of every key."""
    source = unwrap_state_dict(published)
    if not is_segmentor(source):
        detector = any(key.startswith(("rpn_head.", "roi_head.", "roi_heads.")) for key in source)
        hint = ", but those of a detector" if detector else ""
        raise CheckpointError(
            f"these are not the weights of a segmentor{hint}: there is no {_DECODE}* among the keys, which start with "
            f"{listed(source)}"
        )
    result, unknown = Conversion(), []
    ours = not is_published_segmentor(source)
    for key, value in source.items():
        if key.startswith(_BACKBONE):
            continue
        if reason := next((reason for start, reason in _BESIDE.items() if key.startswith(start)), None):
            result.left_over[key] = reason
        elif name := key if ours and key.startswith((_DECODE, _AUXILIARY)) else _to_ours(key):
            result.add(key, name, value)
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} weights have no counterpart in elsa_det's UPerNet: {listed(unknown)}. The checkpoint is "
            "of another architecture"
        )
    if backbone := {key: value for key, value in source.items() if key.startswith(_BACKBONE)}:
        converted = convert_backbone(backbone)
        for key, name in converted.renamed.items():
            result.add(key, _BACKBONE + name, converted.state_dict[name])
        result.left_over.update(converted.left_over)
    check_finite({key: source[key] for key in result.renamed})
    expected = build_segmentor(result.state_dict)
    result.kind = describe_segmentor(result.state_dict)
    check_shapes(
        expected.state_dict(), result.state_dict, f"the checkpoint looks like {result.kind}, but is not one whole"
    )
    return result


def _to_ours(key: str) -> str | None:
    """Our name of a head's weight; None if there is none."""
    for head, modules in _MODULES.items():
        if not key.startswith(head):
            continue
        for published, ours in modules:
            layer = "" if ours == "predictor" else r"(?:conv|(?P<norm>bn|gn))\."
            if match := re.fullmatch(rf"{re.escape(head)}{published}\.{layer}(?P<leaf>\w+)", key):
                norm = "norm." if match.groupdict().get("norm") else ""
                return f"{head}{match.expand(ours)}.{norm}{match['leaf']}"
    return None


def describe_segmentor(state_dict: Mapping[str, Tensor]) -> str:
    """What a segmentor's weights (our names) look like: "UPerNet, 150 classes, 512 channels, on ELSA-Swin-T (…)"."""
    predictor = state_dict.get(f"{_DECODE}predictor.weight")
    told = "" if predictor is None else f", {predictor.shape[0]} classes, {predictor.shape[1]} channels"
    backbone = _within(state_dict, _BACKBONE)
    return f"UPerNet{told}, {f'on {describe_backbone(backbone)}' if backbone else 'without backbone'}"


def build_segmentor(weights: Mapping[str, Tensor]) -> nn.Module:
    """A module with the names and shapes, without memory, of the UPerNet that weights (our names) speak of.

    Raises:
        CheckpointError: a weight that tells a size is missing, or the parts are of different models.
    """
    decode, auxiliary, backbone = (_within(weights, prefix) for prefix in (_DECODE, _AUXILIARY, _BACKBONE))
    classes = {
        prefix: _shape(weights, f"{prefix}predictor.weight")[0]
        for prefix, part in ((_DECODE, decode), (_AUXILIARY, auxiliary))
        if part
    }
    if len(set(classes.values())) > 1:
        told = ", ".join(f"{prefix.rstrip('.')} {count}" for prefix, count in classes.items())
        raise CheckpointError(f"the heads are of different models: their numbers of classes are {told}")
    parts: dict[str, nn.Module] = {}
    with torch.device("meta"):
        head = _build_decode_head(weights, decode)
        parts["decode_head"] = head
        if auxiliary:
            parts["auxiliary_head"] = _build_auxiliary_head(weights, auxiliary, head.inputs.channels)
        if not backbone:
            return nn.ModuleDict(parts)
        parts["backbone"] = build_backbone(backbone)
        try:
            return Segmentor(pixel_mean=[0.0], pixel_std=[1.0], **parts)  # type: ignore[arg-type]
        except ValueError as error:
            raise CheckpointError(f"the parts of the checkpoint are of different models: {error}") from error


def _build_decode_head(weights: Mapping[str, Tensor], decode: Mapping[str, Tensor]) -> UPerHead:
    laterals, pools = (_count(decode, name) for name in ("lateral_convs", "pooling"))
    if not laterals or not pools:
        raise CheckpointError(
            f"the decode_head is not that of a UPerNet: it has {laterals} lateral convolutions and {pools} poolings"
        )
    channels, joined = _shape(weights, f"{_DECODE}fusion.weight")[:2]  # joined: every level
    widths = [
        _shape(weights, f"{_DECODE}lateral_convs.{i}.weight")[1] for i in range(max(laterals, joined // channels - 1))
    ]
    return UPerHead(
        [*widths, _shape(weights, f"{_DECODE}pooling.0.weight")[1]],
        channels=channels,
        num_classes=_shape(weights, f"{_DECODE}predictor.weight")[0],
        pool_scales=range(1, pools + 1),  # their sizes leave no trace in the weights
        norm=_norm(decode, "fusion"),
        ignore_label=-1,
    )


def _build_auxiliary_head(
    weights: Mapping[str, Tensor], auxiliary: Mapping[str, Tensor], widths: tuple[int, ...]
) -> FCNHead:
    convs = _count(auxiliary, "convs")
    num_classes, channels = _shape(weights, f"{_AUXILIARY}predictor.weight")[:2]
    first = _shape(weights, f"{_AUXILIARY}convs.0.weight") if convs else torch.Size((channels, channels, 3, 3))
    if first[1] not in widths:
        raise CheckpointError(
            f"the heads are of different models: the auxiliary_head takes {first[1]} channels, the decode_head maps of "
            f"{', '.join(map(str, widths))}"
        )
    return FCNHead(
        widths,
        channels=channels,
        num_classes=num_classes,
        num_convs=convs,
        kernel_size=first[-1],
        concat_input="conv_cat.weight" in auxiliary,
        in_index=widths.index(first[1]),
        norm=_norm(auxiliary, "convs.0"),
        ignore_label=-1,
    )


def _within(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _shape(weights: Mapping[str, Tensor], key: str) -> torch.Size:
    if key not in weights:
        raise CheckpointError(f"the checkpoint has no {key}: it is incomplete, or of another architecture")
    return weights[key].shape


def _count(part: Mapping[str, Tensor], modules: str) -> int:
    """One more than the largest number of these modules."""
    found = [int(m.group(1)) for key in part if (m := re.match(rf"{modules}\.(\d+)\.", key))]
    return max(found, default=-1) + 1


def _norm(part: Mapping[str, Tensor], module: str) -> str:
    if f"{module}.norm.weight" not in part:
        return ""
    return "BN" if f"{module}.norm.running_mean" in part else "GN"
