"""From the quickstart's weights to own data in COCO format, in minutes on a CPU; the classes are the json's.

Set ``dataset.train.{json_file,image_root}``, and ``dataset.test.{json_file,image_root}`` or ``dataset.val_fraction``.
"""

from ..common.data.own_coco import classes_of_the_data, dataloader, dataset
from ..quickstart.elsa_nano_mrcnn_finetune import dataloader as small_loader
from ..quickstart.elsa_nano_mrcnn_finetune import dataset as small
from ..quickstart.elsa_nano_mrcnn_finetune import lr_multiplier, model, optimizer, train

dataset.image_size = small.image_size
for part in ("train", "test"):
    dataloader[part].mapper = small_loader[part].mapper
    dataloader[part].num_workers = 0
dataloader.train.total_batch_size = small_loader.train.total_batch_size
del small, small_loader, part

model.roi_heads.num_classes = classes_of_the_data()

train.output_dir = "output/own_elsa_nano_mrcnn"
