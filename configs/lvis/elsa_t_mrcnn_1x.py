"""Mask R-CNN, ELSA-Swin-T, on LVIS v1. The paper has no LVIS: the optimizer is its own, the schedule Detectron2's."""

from ..coco.elsa_t_mrcnn_1x import model, optimizer, train
from ..common.data.lvis import dataloader, dataset
from ..common.schedules.lvis import lr_multiplier, max_iter

model.roi_heads.num_classes = 1203
# With so many classes the scores are low, and LVIS counts up to 300 detections of an image.
model.roi_heads.box_predictor.test_score_thresh = 1e-4
model.roi_heads.box_predictor.test_topk_per_image = 300

train.max_iter = max_iter
train.output_dir = "output/lvis_elsa_t_mrcnn_1x"
