"""elsa_det: ELSA-Swin backbones for dense prediction on Detectron2."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["get_config"]


def __getattr__(name: str) -> Any:
    # Late, so that `import elsa_det` chooses no Detectron2 and loads no torch.
    if name == "get_config":
        from .config import get_config

        return get_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
