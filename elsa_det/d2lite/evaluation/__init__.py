"""Running a model over a dataset, and measuring what it finds."""

from __future__ import annotations

from .coco_evaluation import COCOEvaluator
from .evaluator import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset
from .lvis_evaluation import LVISEvaluator
from .testing import print_csv_format
