"""Training stops once box AP has not risen by more than 0.1 in four evaluations, one an epoch."""

from ..coco.elsa_t_mrcnn_3x import dataloader, dataset, lr_multiplier, model, optimizer, train

train.eval_period = 7330
train.early_stopping.metric = "bbox/AP"
train.early_stopping.patience = 4
train.early_stopping.min_delta = 0.1
train.output_dir = "output/early_stopping"
