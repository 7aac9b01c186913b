"""Cascade Mask R-CNN, ELSA-Swin-T, 12 epochs on COCO. Paper: 49.8 box AP, 43.0 mask AP."""

from elsa_det.engine.optimizer_params import optimizer_params_with_decayed_norms

from ..common.models.backbones import elsa_swin
from ..common.models.cascade_mask_rcnn import model
from .elsa_t_mrcnn_1x import dataloader, dataset, lr_multiplier, optimizer, train

model.backbone.bottom_up = elsa_swin("tiny", drop_path_rate=0.0)
# The release decays the batch norms of the box heads.
optimizer.params.update(_target_=optimizer_params_with_decayed_norms, decayed_norms=["roi_heads.box_head."])

train.output_dir = "output/elsa_t_cascade_1x"
