"""Semantic segmentation: heads, and the segmentor that they make with a backbone."""

from .build import add_segmentor_config
from .decode_head import DecodeHead, stage_shapes
from .fcn_head import FCNHead
from .losses import segmentation_loss
from .resizing import predicted_labels, resized_rows, row_blocks
from .segmentor import Segmentor
from .semantic_fpn import SemanticFPNHead
from .uper_head import UPerHead

__all__ = [
    "DecodeHead",
    "FCNHead",
    "Segmentor",
    "SemanticFPNHead",
    "UPerHead",
    "add_segmentor_config",
    "predicted_labels",
    "resized_rows",
    "row_blocks",
    "segmentation_loss",
    "stage_shapes",
]
