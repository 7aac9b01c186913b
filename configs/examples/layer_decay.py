"""Learning rates that fall by a factor of 0.8 from each block of the backbone to the one before it."""

from elsa_det.d2 import LazyCall as L
from elsa_det.engine.layer_decay import SwinLayerDecay

from ..coco.elsa_t_mrcnn_1x import dataloader, dataset, lr_multiplier, model, optimizer, train

optimizer.params.lr_factor_func = L(SwinLayerDecay)(decay=0.8, depths="${model.backbone.bottom_up.depths}")
train.output_dir = "output/layer_decay"
