"""UPerNet, ELSA-Swin-T, 80k iterations on Cityscapes: ADE20K's recipe, larger crops. The paper has no such model."""

from ..ade20k.elsa_t_upernet_160k import model, optimizer, train
from ..common.data.cityscapes_semantic import dataloader, dataset
from ..common.schedules.ade20k import lr_multiplier_80k as lr_multiplier
from ..common.schedules.ade20k import max_iter_80k

dataloader.train.total_batch_size = 8

train.max_iter = max_iter_80k
train.eval_period = 8_000
train.checkpointer.period = 8_000
train.output_dir = "output/cityscapes_elsa_t_upernet_80k"
