"""Heads on regions that Detectron2's own cannot express."""

from .cascade_mask_rcnn import CascadeMaskRCNNHeads

__all__ = ["CascadeMaskRCNNHeads"]
