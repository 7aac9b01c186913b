"""Mask R-CNN, ELSA-Swin-T, for own data in COCO format; the classes are the json's.

Set ``dataset.train.{json_file,image_root}``, and ``dataset.test.{json_file,image_root}`` or ``dataset.val_fraction``.
"""

from ..coco.elsa_t_mrcnn_1x import model, optimizer, train
from ..common.data.own_coco import classes_of_the_data, dataloader, dataset
from ..common.schedules.own_data import lr_multiplier

model.roi_heads.num_classes = classes_of_the_data()

# Half of COCO's batch, and with it half of its rate.
dataloader.train.total_batch_size = 8
optimizer.lr = 5e-5

train.max_iter = 5000
train.eval_period = 1000
train.checkpointer.period = 1000
train.output_dir = "output/own_elsa_t_mrcnn"
