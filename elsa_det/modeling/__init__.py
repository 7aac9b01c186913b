"""Models: what elsa_det adds to Detectron2's."""

from .backbone import ELSA_SWIN_VARIANTS, SWIN_VARIANTS, ELSASwin, HierarchicalBackbone, Swin, add_elsa_config
from .roi_heads import CascadeMaskRCNNHeads
from .semantic import FCNHead, Segmentor, SemanticFPNHead, UPerHead, add_segmentor_config, stage_shapes

__all__ = [
    "ELSA_SWIN_VARIANTS",
    "SWIN_VARIANTS",
    "CascadeMaskRCNNHeads",
    "ELSASwin",
    "FCNHead",
    "HierarchicalBackbone",
    "Segmentor",
    "SemanticFPNHead",
    "Swin",
    "UPerHead",
    "add_elsa_config",
    "add_segmentor_config",
    "stage_shapes",
]
