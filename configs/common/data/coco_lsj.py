"""COCO-format instance data with large-scale jittering (Ghiasi et al., arXiv 2012.07177)."""

from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import transforms as T

from .coco import dataloader, dataset

for unused in ("train", "before_crop", "crop"):
    dataset.image_size.pop(unused)
del unused
# Pixels of a side of the square, and how large an image is drawn within it, of the size that just fits.
dataset.image_size.square = 1024
dataset.image_size.jitter = [0.1, 2.0]

dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.ResizeScale)(
        min_scale="${dataset.image_size.jitter[0]}",
        max_scale="${dataset.image_size.jitter[1]}",
        target_height="${dataset.image_size.square}",
        target_width="${dataset.image_size.square}",
    ),
    L(T.FixedSizeCrop)(crop_size=["${dataset.image_size.square}", "${dataset.image_size.square}"]),
]
