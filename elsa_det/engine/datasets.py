"""The datasets that a config names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from ..d2 import instantiate


def dataset_names(cfg: Any, loader: str) -> list[str]:
    """Names of the datasets of ``dataloader.train`` or ``dataloader.test``; own data is registered on the way.

    Raises:
        UserError, FileNotFoundError: a dataset is not there, see :func:`elsa_det.data.registered_coco`.
    """
    names = OmegaConf.select(cfg, f"dataloader.{loader}.dataset.names")
    if names is None:
        return []
    found = instantiate(names)
    return [found] if isinstance(found, str) else list(found)


def check_datasets(cfg: Any, loaders: Sequence[str]) -> None:
    """Raise if a dataset that the config names is not there; own data is registered on the way.

    Raises:
        UserError, FileNotFoundError: see :func:`elsa_det.data.registered_coco`.
    """
    for loader in loaders:
        dataset_names(cfg, loader)
