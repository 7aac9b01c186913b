from .box_head import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead
from .fast_rcnn import FastRCNNOutputLayers
from .mask_head import ROI_MASK_HEAD_REGISTRY, BaseMaskRCNNHead, MaskRCNNConvUpsampleHead
from .roi_heads import ROI_HEADS_REGISTRY, ROIHeads, StandardROIHeads, select_foreground_proposals

__all__ = [
    "ROI_BOX_HEAD_REGISTRY",
    "ROI_HEADS_REGISTRY",
    "ROI_MASK_HEAD_REGISTRY",
    "BaseMaskRCNNHead",
    "FastRCNNConvFCHead",
    "FastRCNNOutputLayers",
    "MaskRCNNConvUpsampleHead",
    "ROIHeads",
    "StandardROIHeads",
    "select_foreground_proposals",
]
