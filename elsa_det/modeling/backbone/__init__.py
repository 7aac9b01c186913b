"""Backbones, registered with Detectron2 and usable with LazyCall."""

from .build import add_elsa_config
from .elsa_swin import ELSASwin
from .hierarchical import HierarchicalBackbone
from .swin import Swin
from .variants import ELSA_SWIN_VARIANTS, SWIN_VARIANTS

__all__ = ["ELSA_SWIN_VARIANTS", "SWIN_VARIANTS", "ELSASwin", "HierarchicalBackbone", "Swin", "add_elsa_config"]
