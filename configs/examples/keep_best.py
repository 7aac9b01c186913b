"""model_best.pth: the weights of the evaluation with the highest mask AP."""

from ..coco.elsa_t_mrcnn_1x import dataloader, dataset, lr_multiplier, model, optimizer, train

train.best.metric = "segm/AP"
train.output_dir = "output/keep_best"
