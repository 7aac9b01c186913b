"""Copy-paste of objects between images, on top of large-scale jittering as in the paper."""

from elsa_det.data import build_copy_paste_train_loader

from .large_scale_jitter import dataloader, dataset, lr_multiplier, model, optimizer, train

dataloader.train._target_ = build_copy_paste_train_loader
# The chance that an image gets objects of another, and the share of its pixels that an object must keep.
dataloader.train.copy_paste = dict(prob=1.0, min_visible=0.1)
dataloader.train.mapper.instance_mask_format = "bitmask"

train.output_dir = "output/copy_paste"
