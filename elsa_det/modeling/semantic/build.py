"""Registered builders, for configs that name their model and head (Detectron2's yacs configs)."""

from __future__ import annotations

from typing import Any

from ...d2 import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, ShapeSpec
from .fcn_head import FCNHead
from .segmentor import Segmentor
from .semantic_fpn import SemanticFPNHead
from .uper_head import UPerHead


def add_segmentor_config(cfg: Any) -> None:
    """Add the keys of the segmentor, ``MODEL.SEGMENTOR``, to a Detectron2 ``CfgNode``.

    Then set ``MODEL.META_ARCHITECTURE`` to ``build_segmentor``, ``MODEL.BACKBONE.NAME`` to a backbone such as
    ``build_elsa_swin_backbone``, ``MODEL.SEM_SEG_HEAD.NAME`` to ``build_uper_head`` or ``build_semantic_fpn_head``, and
    ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` and ``IGNORE_VALUE``. The other keys of ``MODEL.SEM_SEG_HEAD`` are not read.
    """
    node = type(cfg)
    cfg.MODEL.SEGMENTOR = node(
        dict(
            IN_FEATURES=["p0", "p1", "p2", "p3"],
            CHANNELS=512,
            NORM="auto",
            DROPOUT=0.1,
            POOL_SCALES=[1, 2, 3, 6],
            AVERAGE_OVER_VALID=True,
            RETURN_LOGITS=False,
            AUXILIARY=node(dict(ENABLED=True, IN_FEATURE="p2", CHANNELS=256, LOSS_WEIGHT=0.4)),
        )
    )


def _shared(cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
    own, head = cfg.MODEL.SEGMENTOR, cfg.MODEL.SEM_SEG_HEAD
    return dict(
        input_shape=input_shape,
        num_classes=head.NUM_CLASSES,
        ignore_label=head.IGNORE_VALUE,
        norm=own.NORM,
        dropout_ratio=own.DROPOUT,
        average_over_valid=own.AVERAGE_OVER_VALID,
    )


@SEM_SEG_HEADS_REGISTRY.register()
def build_uper_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> UPerHead:
    """UPerNet's head from ``cfg.MODEL.SEGMENTOR``; see :func:`add_segmentor_config`."""
    own = cfg.MODEL.SEGMENTOR
    return UPerHead(
        **_shared(cfg, input_shape),
        in_features=own.IN_FEATURES,
        channels=own.CHANNELS,
        pool_scales=own.POOL_SCALES,
    )


@SEM_SEG_HEADS_REGISTRY.register()
def build_semantic_fpn_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> SemanticFPNHead:
    """Semantic FPN's head from ``cfg.MODEL.SEGMENTOR``; see :func:`add_segmentor_config`."""
    own = cfg.MODEL.SEGMENTOR
    return SemanticFPNHead(**_shared(cfg, input_shape), in_features=own.IN_FEATURES, channels=own.CHANNELS)


@SEM_SEG_HEADS_REGISTRY.register()
def build_fcn_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> FCNHead:
    """The auxiliary head from ``cfg.MODEL.SEGMENTOR.AUXILIARY``; see :func:`add_segmentor_config`."""
    own = cfg.MODEL.SEGMENTOR.AUXILIARY
    return FCNHead(
        **_shared(cfg, input_shape),
        in_features=own.IN_FEATURE,
        channels=own.CHANNELS,
        loss_weight=own.LOSS_WEIGHT,
    )


@META_ARCH_REGISTRY.register()
def build_segmentor(cfg: Any) -> Segmentor:
    """The whole model; see :func:`add_segmentor_config`."""
    model = cfg.MODEL
    backbone = BACKBONE_REGISTRY.get(model.BACKBONE.NAME)(cfg, ShapeSpec(channels=len(model.PIXEL_MEAN)))
    shapes = backbone.output_shape()
    return Segmentor(
        backbone=backbone,
        decode_head=SEM_SEG_HEADS_REGISTRY.get(model.SEM_SEG_HEAD.NAME)(cfg, shapes),
        auxiliary_head=build_fcn_head(cfg, shapes) if model.SEGMENTOR.AUXILIARY.ENABLED else None,
        pixel_mean=model.PIXEL_MEAN,
        pixel_std=model.PIXEL_STD,
        input_format=cfg.INPUT.FORMAT,
        return_logits=model.SEGMENTOR.RETURN_LOGITS,
    )
