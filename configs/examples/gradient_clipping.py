"""Gradients of a common norm above 1 are scaled down to it; the norm is recorded as grad_norm."""

from ..coco.elsa_t_mrcnn_1x import dataloader, dataset, lr_multiplier, model, optimizer, train

train.clip_grad_norm = 1.0
train.output_dir = "output/gradient_clipping"
