"""UPerNet, Swin-B, 160k iterations on ADE20K: the baseline, by the recipe of T and S."""

from ..common.models.backbones import swin
from .swin_t_upernet_160k import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = swin("base", drop_path_rate=0.3)

train.init_checkpoint = "pretrained/swin_base_patch4_window7_224.pth"
train.output_dir = "output/swin_b_upernet_160k"
