"""Models: what elsa_det adds to Detectron2's."""

from .backbone import ELSA_SWIN_VARIANTS, SWIN_VARIANTS, ELSASwin, HierarchicalBackbone, Swin, add_elsa_config

__all__ = ["ELSA_SWIN_VARIANTS", "SWIN_VARIANTS", "ELSASwin", "HierarchicalBackbone", "Swin", "add_elsa_config"]
