"""Own data in COCO format, with COCO's augmentation: the files come from the command line, the classes from the json.

::

    dataset.train.json_file=train.json dataset.train.image_root=train
    dataset.test.json_file=val.json dataset.test.image_root=val

Several files are lists, ``dataset.train.json_file=[a.json,b.json]``, with a folder for each or one for all. In place of
test data, ``dataset.val_fraction=0.2`` keeps a share of the training images for testing.
"""

from elsa_det.d2 import LazyCall as L
from elsa_det.data import count_classes, own_coco

from .coco import dataloader, dataset

dataset.train.name = None
dataset.test.name = None
# The share of the training images, 0 to 1, that is kept for testing, in place of dataset.test.
dataset.val_fraction = None
# Another seed keeps other images.
dataset.split_seed = 0

for part in ("train", "test"):
    dataloader[part].dataset.names = L(own_coco)(part=part, dataset="${dataset}", folder="${train.output_dir}/data")
del part


def classes_of_the_data():
    """The number of classes of a model for own data. Where no data is named, the model is made with COCO's 80."""
    return L(count_classes)(dataset="${dataset}", without_data=80)
