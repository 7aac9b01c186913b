"""Cascade Mask R-CNN, Swin-T, 12 epochs on COCO: the baseline. Paper: 48.1 box AP, 41.7 mask AP."""

from elsa_det.engine.optimizer_params import optimizer_params_with_decayed_norms

from ..common.models.backbones import swin
from ..common.models.cascade_mask_rcnn import model
from .swin_t_mrcnn_1x import dataloader, dataset, lr_multiplier, optimizer, train

model.backbone.bottom_up = swin("tiny", drop_path_rate=0.0)
# The release decays the batch norms of the box heads.
optimizer.params.update(_target_=optimizer_params_with_decayed_norms, decayed_norms=["roi_heads.box_head."])

train.output_dir = "output/swin_t_cascade_1x"
