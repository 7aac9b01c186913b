"""What can be called, with which arguments and defaults."""

from __future__ import annotations

import enum
import inspect
import types
from typing import Any

from fidelity.harness import case, names_to_cover

from elsa_det import d2

# Parts that d2lite leaves out (see intended.py).
NOT_THERE = {
    "BitMasks": ["from_roi_masks"],
    "FastRCNNOutputLayers": ["get_fed_loss_classes"],
    "Visualizer": [
        *("draw_and_connect_keypoints", "draw_circle", "draw_line", "draw_soft_mask", "draw_panoptic_seg"),
        *("draw_panoptic_seg_predictions", "draw_rotated_box_with_label", "overlay_rotated_instances"),
    ],
    "detection_utils": [
        *("annotations_to_instances_rotated", "build_augmentation", "build_transform_gen"),
        *("create_keypoint_hflip_indices", "gen_crop_transform_with_instance", "get_fed_loss_cls_weights"),
        *("transform_keypoint_annotations", "transform_proposals"),
    ],
    "hooks": ["AutogradProfiler", "PreciseBN", "TorchMemoryStats", "TorchProfiler"],
    "transforms": ["ExtentTransform", "RandomExtent"],
    **{name: ["from_config"] for name in ("DatasetMapper", "GeneralizedRCNN", "ROIHeads", "RPN", "RetinaNet")},
}
# Written otherwise, and the same to the caller: Detectron2 hides arguments behind *args, or a method in its base class.
_SAME = {
    *("Backbone.forward", "Conv2d.__init__", "DetectionCheckpointer.load", "LVISEvaluator.evaluate"),
    *("FPN.lateral_convs", "FPN.output_convs", "FastRCNNConvFCHead.forward"),
    *("transforms.ResizeTransform.apply_rotated_box", "transforms.RotationTransform.create_rotation_matrix"),
}
# Libraries' own classes.
_FOREIGN = ("torch", "builtins", "fvcore", "iopath", "enum", "collections", "typing", "logging", "yacs")


def text_of(default: Any) -> str:
    """A default as text that is the same in both providers."""
    if callable(default):
        return getattr(default, "__name__", type(default).__name__)
    return (
        str(default)
        if isinstance(default, (str, enum.Enum))
        else repr(default).replace("elsa_det.d2lite", "detectron2")
    )


def signature(function: Any) -> list[str]:
    """``name=default`` of every parameter, ``*`` before those by keyword."""
    out = []
    for parameter in inspect.signature(function).parameters.values():
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**", parameter.KEYWORD_ONLY: "by keyword "}
        default = "" if parameter.default is parameter.empty else f"={text_of(parameter.default)}"
        out.append(f"{star.get(parameter.kind, '')}{parameter.name}{default}")
    return out


def public(kind: type) -> dict[str, Any]:
    """Its constructor and public methods, inherited ones of the provider too."""
    out: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.split(".")[0] in _FOREIGN:
            continue
        for name, value in vars(base).items():
            if name == "__init__" or not name.startswith("_"):
                value = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
                value = value.fget if isinstance(value, property) else value
                if isinstance(value, types.FunctionType):
                    out[name] = value
    return out


def everything() -> dict[str, list[str]]:
    """Name, or ``class.method``, to parameters."""
    out: dict[str, list[str]] = {}
    for name in sorted(names_to_cover()):
        value = getattr(d2, name)
        if isinstance(value, types.ModuleType):
            own = {key: each for key, each in vars(value).items() if not key.startswith("_")}
            members = {
                f"{name}.{key}": each
                for key, each in own.items()
                if (getattr(each, "__module__", None) or "").startswith(value.__name__)
                and key not in NOT_THERE.get(name, ())
            }
        else:
            members = {name: value}
        for path, each in members.items():
            root = getattr(each, "__module__", "") or ""
            if not root.startswith(("detectron2", "elsa_det")):
                continue
            if inspect.isclass(each) and not issubclass(each, enum.Enum):
                methods = {f"{path}.{method}": function for method, function in public(each).items()}
                left_out = {f"{path}.{method}" for method in [*NOT_THERE.get(name, ()), "from_config"]} | _SAME
                out |= {method: signature(function) for method, function in methods.items() if method not in left_out}
            elif isinstance(each, types.FunctionType):
                out[path] = signature(each)
    return out


@case(  # covers no name: each has a case of its own as well
    what="of all names: parameters and defaults of functions, constructors and public methods; kinds of objects",
)
def signatures():
    kinds = {name: type(getattr(d2, name)).__name__.lstrip("_") for name in sorted(names_to_cover())}
    return {"kinds": kinds, "parameters": everything()}
