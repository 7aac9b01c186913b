"""Fitting a state dict into a model whose names are longer: ``stem.weight`` into ``backbone.stem.weight``."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)


def _longest_suffix(name: str, known: dict[str, torch.Tensor]) -> str | None:
    while name not in known:
        _, dot, name = name.partition(".")
        if not dot:
            return None
    return name


def align_state_dict(model_state: dict[str, torch.Tensor], loaded: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``loaded`` with its tensors renamed to those of the model.

    A model's tensor takes the one whose name is the longest whole-dotted suffix of its own, if the shapes agree.
    Tensors that nothing takes keep their names, so that loading reports them. If nothing at all matches, ``loaded``
    comes back as it is.

    Raises:
        ValueError: one loaded tensor fits two of the model's.
    """
    taken: dict[str, str] = {}  # loaded name -> model's name
    for name in sorted(model_state):
        source = _longest_suffix(name, loaded)
        if source is None:
            continue
        if loaded[source].shape != model_state[name].shape:
            logger.warning(
                "%s is not loaded into %s: its shape is %s, and the model's %s",
                source,
                name,
                tuple(loaded[source].shape),
                tuple(model_state[name].shape),
            )
        elif source in taken:
            raise ValueError(
                f"'{source}' of the checkpoint fits both '{taken[source]}' and '{name}' of the model. "
                "Give the checkpoint the model's full names, and load it without matching_heuristics."
            )
        else:
            taken[source] = name
    if not taken:
        logger.warning("None of the checkpoint's %d tensors matches the model by name and shape", len(loaded))
        return loaded
    logger.info(
        "%d of the checkpoint's %d tensors matched by the ends of their names, for %d tensors in the model",
        len(taken),
        len(loaded),
        len(model_state),
    )
    for source, name in taken.items():
        logger.debug("%s <- %s %s", name, source, tuple(loaded[source].shape))
    aligned = {taken[source]: loaded[source] for source in sorted(taken, key=taken.__getitem__)}
    return aligned | {source: tensor for source, tensor in loaded.items() if source not in taken}
