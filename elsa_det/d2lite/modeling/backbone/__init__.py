from .backbone import Backbone
from .build import BACKBONE_REGISTRY
from .fpn import FPN

__all__ = ["BACKBONE_REGISTRY", "FPN", "Backbone"]
