"""Registered builders, for configs that name their backbone (Detectron2's yacs configs)."""

from __future__ import annotations

from typing import Any

from ...d2 import BACKBONE_REGISTRY, FPN, LastLevelMaxPool, ShapeSpec
from .elsa_swin import ELSASwin
from .hierarchical import HierarchicalBackbone
from .swin import Swin


def add_elsa_config(cfg: Any) -> None:
    """Add the backbones' keys, ``MODEL.ELSA_SWIN`` and ``MODEL.SWIN``, to a Detectron2 ``CfgNode``.

    Defaults are those of the tiny models. Then set ``MODEL.BACKBONE.NAME`` to one of ``build_elsa_swin_backbone``,
    ``build_elsa_swin_fpn_backbone``, ``build_swin_backbone``, ``build_swin_fpn_backbone``.
    """
    node = type(cfg)
    shared = dict(
        EMBED_DIM=96,
        DEPTHS=[2, 2, 6, 2],
        NUM_HEADS=[3, 6, 12, 24],
        WINDOW_SIZE=7,
        QKV_BIAS=True,
        MLP_RATIO=4.0,
        DROP_RATE=0.0,
        DROP_PATH_RATE=0.2,
        OUT_INDICES=[0, 1, 2, 3],
        FROZEN_STAGES=-1,
        USE_CHECKPOINT=False,
    )
    cfg.MODEL.ELSA_SWIN = node(dict(shared, GROUP_WIDTH=4, LAM=0.0, GAMMA=1.0, DILATION=1, RECOMPUTE_LOGITS=False))
    cfg.MODEL.SWIN = node(dict(shared))


def _from_node(kind: type[HierarchicalBackbone], node: Any, input_shape: ShapeSpec) -> Any:
    return kind(**{key.lower(): value for key, value in node.items()}, in_channels=input_shape.channels or 3)  # type: ignore[call-arg]


def _with_fpn(bottom_up: HierarchicalBackbone, cfg: Any) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES or list(bottom_up.output_shape()),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_elsa_swin_backbone(cfg: Any, input_shape: ShapeSpec) -> ELSASwin:
    """ELSA-Swin from ``cfg.MODEL.ELSA_SWIN``; see :func:`add_elsa_config`."""
    return _from_node(ELSASwin, cfg.MODEL.ELSA_SWIN, input_shape)


@BACKBONE_REGISTRY.register()
def build_elsa_swin_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """ELSA-Swin with FPN and a max-pooled top level, from ``cfg.MODEL.ELSA_SWIN`` and ``cfg.MODEL.FPN``."""
    return _with_fpn(build_elsa_swin_backbone(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: Any, input_shape: ShapeSpec) -> Swin:
    """Swin from ``cfg.MODEL.SWIN``; see :func:`add_elsa_config`."""
    return _from_node(Swin, cfg.MODEL.SWIN, input_shape)


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """Swin with FPN and a max-pooled top level, from ``cfg.MODEL.SWIN`` and ``cfg.MODEL.FPN``."""
    return _with_fpn(build_swin_backbone(cfg, input_shape), cfg)
