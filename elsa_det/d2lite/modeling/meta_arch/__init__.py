from .build import META_ARCH_REGISTRY
from .rcnn import GeneralizedRCNN

__all__ = ["META_ARCH_REGISTRY", "GeneralizedRCNN"]
