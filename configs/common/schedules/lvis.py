"""LVIS v1 as Detectron2 trains it: 180,000 batches of 16, about 29 epochs, with the warm-up of the COCO recipes."""

from .coco import multistep

max_iter = 180_000
lr_multiplier = multistep(max_iter, (120_000, 160_000))
