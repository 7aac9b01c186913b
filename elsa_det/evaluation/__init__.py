"""Evaluation beyond Detectron2's."""

from .augmented import TTA_LABEL, evaluate_with_tta, with_tta
from .cityscapes import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from .detection_tta import DetectionTTA
from .inference import run_inference, watch_inference
from .limited import limit_evaluation
from .semantic_evaluator import SemanticEvaluator
from .semantic_inference import SemanticInference
from .semantic_modes import WHOLE, evaluate_modes, semantic_modes
