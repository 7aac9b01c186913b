"""Exact accounting of models, and the model zoo's figures."""

from .analyze import Analysis, analyze, analyze_config, build_on_meta, kept_for_training
from .parts import Accounting, Figures
from .passes import PUBLISHED, Regions

__all__ = [
    "PUBLISHED",
    "Accounting",
    "Analysis",
    "Figures",
    "Regions",
    "analyze",
    "analyze_config",
    "build_on_meta",
    "kept_for_training",
]
