"""UPerNet, ELSA-Swin-B, 160k iterations on ADE20K. The paper has no such model; the recipe is that of T and S."""

from ..common.models.backbones import elsa_swin
from .elsa_t_upernet_160k import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = elsa_swin("base", drop_path_rate=0.3)

train.init_checkpoint = "pretrained/elsa_swin_base.pth"
train.output_dir = "output/elsa_b_upernet_160k"
