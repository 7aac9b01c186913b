"""Running configs: training, evaluation, prediction."""

from .predictor import Predictor

__all__ = ["Predictor"]
