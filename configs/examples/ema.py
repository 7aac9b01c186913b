"""A moving average of the weights, evaluated beside them; model_final_ema.pth is the average."""

from ..coco.elsa_t_mrcnn_1x import dataloader, dataset, lr_multiplier, model, optimizer, train

train.ema.enabled = True
train.output_dir = "output/ema"
