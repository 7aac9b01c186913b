from .build import META_ARCH_REGISTRY
from .dense_detector import DenseDetector
from .rcnn import GeneralizedRCNN
from .retinanet import RetinaNet
from .semantic_seg import SEM_SEG_HEADS_REGISTRY

__all__ = ["META_ARCH_REGISTRY", "SEM_SEG_HEADS_REGISTRY", "DenseDetector", "GeneralizedRCNN", "RetinaNet"]
