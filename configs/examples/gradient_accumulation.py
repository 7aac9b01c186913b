"""The recipe's batch of 16 in four passes of 4: a quarter of the memory for activations."""

from ..coco.elsa_t_mrcnn_1x import dataloader, dataset, lr_multiplier, model, optimizer, train

train.accumulate = 4
train.output_dir = "output/gradient_accumulation"
