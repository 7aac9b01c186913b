"""Segmentors for tests, from the configs of the toolkit."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from elsa_det.config import config_root
from elsa_det.d2 import LazyCall, LazyConfig
from elsa_det.modeling import ELSASwin

#: a backbone that is small in everything
TINY = dict(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], group_width=4)


def segmentor_config(name: str, kind: type = ELSASwin, **backbone: Any) -> Any:
    """``configs/common/models/{name}.py`` with a backbone, as a leaf config has it."""
    model = LazyConfig.load(str(config_root() / "common" / "models" / f"{name}.py")).model
    model.backbone = LazyCall(kind)(**backbone)
    return OmegaConf.create({"model": model}, flags={"allow_objects": True})
