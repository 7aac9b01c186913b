"""Large-scale jittering: images scaled by 0.1 to 2.0 in a square of 1024 pixels. Made for long schedules."""

from ..coco.elsa_t_mrcnn_3x import lr_multiplier, model, optimizer, train
from ..common.data.coco_lsj import dataloader, dataset

train.output_dir = "output/large_scale_jitter"
