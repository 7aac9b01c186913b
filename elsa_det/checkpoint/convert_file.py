"""Checkpoint files of other code to files of ours, and back: what ``tools/convert_checkpoint.py`` runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import convert_backbone
from .conversion import Conversion, check_shapes, listed
from .detector import (
    convert_detector,
    describe_detector,
    drop,
    is_detectron2,
    is_mmdetection,
    take_parts,
    to_mmdetection_state_dict,
)
from .reading import CheckpointError, read_checkpoint, unwrap_state_dict
from .segmentor import convert_segmentor, is_segmentor
from .structure import check_backbone, num_classes

_BOTTOM_UP = "backbone.bottom_up."

#: endings of files that can be written
WRITTEN = (".pth", ".pt", ".safetensors")


def convert_published(published: Mapping[str, Any]) -> Conversion:
    """A whole published detector or segmentor, or a published backbone under the name it has in a detector.

    Args:
        published: a checkpoint as loaded.

    Raises:
        CheckpointError: another architecture, an incomplete one, a mixture, or NaN or infinite weights.
    """
    weights = unwrap_state_dict(published)
    if is_mmdetection(weights) or is_detectron2(weights):
        return convert_detector(published)
    if is_segmentor(weights):
        return convert_segmentor(published)
    bare = convert_backbone(published)
    if other := [key for key, reason in bare.left_over.items() if reason == "not of the backbone"]:
        raise CheckpointError(
            f"the checkpoint is of {bare.kind} with other heads than elsa_det's models have ({listed(other)}). "
            "Its backbone alone can be taken with --parts backbone"
        )
    check_backbone(bare.state_dict, bare.kind)
    return _as_bottom_up(bare)


def _as_bottom_up(bare: Conversion) -> Conversion:
    result = Conversion(left_over=bare.left_over, kind=bare.kind)
    for key, name in bare.renamed.items():
        result.add(key, _BOTTOM_UP + name, bare.state_dict[name])
    return result


def check_fit(conversion: Conversion, model: nn.Module) -> None:
    """Raise unless converted weights are all the weights of a model, or all of its backbone.

    Raises:
        CheckpointError: naming the keys that are missing, unexpected or of another shape.
    """
    expected = model.state_dict()
    if _is_backbone_alone(conversion):
        expected = _bottom_up_of(expected)
        for key in [key for key in expected if key.startswith(f"{_BOTTOM_UP}norm")]:
            if key not in conversion.state_dict:  # as in a classifier
                conversion.initialised[key] = "output norm, starts as the identity"
                del expected[key]
    headline = f"the checkpoint ({conversion.kind}) does not fit the config"
    if is_detectron2(expected):
        headline += f" ({describe_detector(expected)})"
    have, want = num_classes(conversion.state_dict), num_classes(expected)
    if have is not None and want is not None and have != want:
        headline += f". model.roi_heads.num_classes={have} gives it as many classes as the file has"
    check_shapes(expected, conversion.state_dict, headline)


def _is_backbone_alone(conversion: Conversion) -> bool:
    return all(name.startswith(_BOTTOM_UP) for name in conversion.state_dict)


def _bottom_up_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's weights of a model, under the names they have in a detector; a segmentor has no neck around it."""
    prefix = _BOTTOM_UP if any(key.startswith(_BOTTOM_UP) for key in weights) else "backbone."
    return {_BOTTOM_UP + key.removeprefix(prefix): v for key, v in weights.items() if key.startswith(prefix)}


def complete(conversion: Conversion, model: nn.Module, backbone: Mapping[str, Any] | None = None) -> None:
    """Make parts of a detector a whole model: what fits is taken, the rest is as ``model`` has it.

    What does not fit becomes left over, what the model adds is listed in ``conversion.initialised``.

    Args:
        conversion: from :func:`take_parts`; changed in place.
        model: newly built.
        backbone: a checkpoint, as loaded, that the backbone is taken from instead.

    Raises:
        CheckpointError: the backbone does not fit the model, or nothing else does.
    """
    own = model.state_dict()
    for key, name in list(conversion.renamed.items()):
        value = conversion.state_dict[name]
        if name not in own:
            drop(conversion, key, "no such name in the model")
        elif value.shape != own[name].shape:
            drop(conversion, key, f"shape {tuple(value.shape)} in the file, {tuple(own[name].shape)} in the model")
    if not conversion.state_dict:
        raise CheckpointError("nothing in the checkpoint fits the model:\n  " + "\n  ".join(account(conversion)))
    if backbone is not None:
        bottom_up = _as_bottom_up(convert_backbone(backbone))
        check_fit(bottom_up, model)
        conversion.state_dict.update(bottom_up.state_dict)
        conversion.initialised.update(
            dict.fromkeys(bottom_up.state_dict, f"from the backbone's file ({bottom_up.kind})")
        )
        conversion.initialised.update(bottom_up.initialised)
    for name, value in own.items():
        if name not in conversion.state_dict:
            conversion.state_dict[name] = value
            conversion.initialised.setdefault(name, "newly initialised")


def account(conversion: Conversion) -> Iterator[str]:
    """A line for every key: what it became, or why it was left over; then what the file has no value for."""
    width = max((len(key) for key in [*conversion.renamed, *conversion.left_over]), default=0)
    for key, name in conversion.renamed.items():
        yield f"{key:{width}} -> {name} {tuple(conversion.state_dict[name].shape)}"
    for key, reason in conversion.left_over.items():
        yield f"{key:{width}} left over: {reason}"
    for name, reason in conversion.initialised.items():
        yield f"{'':{width}} -- {name}: {reason}"


def summary(conversion: Conversion) -> str:
    """How many keys went where, in one line."""
    same = sum(key == name for key, name in conversion.renamed.items())
    told = [
        f"{len(conversion.renamed)} tensors taken ({same} under the same name)",
        f"{len(conversion.left_over)} left over",
    ]
    if conversion.initialised:
        told.append(f"{len(conversion.initialised)} of the model from elsewhere")
    return f"{conversion.kind}: {', '.join(told)}"


def convert_file(
    source: str | Path,
    target: str | Path,
    *,
    model: nn.Module | None = None,
    parts: Sequence[str] = (),
    backbone: str | Path | None = None,
    to_mmdetection: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Read a checkpoint, convert it, and write it as ``{"model": weights}`` or as safetensors.

    Args:
        source: a published (or our own) detector or backbone; with ``parts`` also a detector on another backbone, such
            as those of Detectron2's model zoo.
        target: ``.pth``, ``.pt`` or ``.safetensors``.
        model: newly built; the weights have to fit it. Needed for ``parts``.
        parts: take these parts of the file only (:data:`PARTS`), as far as they fit the model, and complete them to a
            whole model; see :func:`complete`.
        backbone: with ``parts``, the file that the backbone is taken from.
        to_mmdetection: write mmdetection's names, as ``{"state_dict": weights}``.
        overwrite: replace ``target`` if it exists.

    Returns:
        The account of every key.

    Raises:
        FileNotFoundError: a file to be read does not exist.
        CheckpointError: see :func:`convert_published`, :func:`check_fit` and :func:`complete`; or arguments that do not
            go together.
    """
    target = Path(target)
    if target.suffix not in WRITTEN:
        raise CheckpointError(f"{target} must end in one of {', '.join(WRITTEN)}")
    if target.exists() and (not overwrite or target.resolve() == Path(source).resolve()):
        raise CheckpointError(f"{target} exists already: name another file, or ask for it to be overwritten")
    if parts and model is None:
        raise CheckpointError("parts of a checkpoint are completed to a whole model: name the config of that model")
    if backbone is not None and ("backbone" in parts or not parts):
        raise CheckpointError("a file for the backbone goes with parts of another file, its backbone not among them")
    try:
        published = read_checkpoint(source)
        if parts:
            assert model is not None
            conversion = take_parts(published, parts)
            complete(conversion, model, None if backbone is None else read_checkpoint(backbone))
        else:
            conversion = convert_published(published)
            if model is not None:
                check_fit(conversion, model)
    except CheckpointError as error:
        if str(source) in str(error):
            raise
        raise CheckpointError(f"{source}: {error}") from error
    weights = to_mmdetection_state_dict(conversion.state_dict) if to_mmdetection else conversion.state_dict
    _write(target, weights, "state_dict" if to_mmdetection else "model")
    return conversion


def _write(path: Path, weights: Mapping[str, Tensor], wrapper: str) -> None:
    weights = {key: value.detach().clone().contiguous() for key, value in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(weights, unfinished, metadata={"format": "pt"})
        else:
            torch.save({wrapper: weights}, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
