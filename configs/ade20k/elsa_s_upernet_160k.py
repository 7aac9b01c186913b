"""UPerNet, ELSA-Swin-S, 160k iterations on ADE20K.

Paper: 50.3 mIoU, several sizes and mirrored (released weights: 50.4).
"""

from ..common.models.backbones import elsa_swin
from .elsa_t_upernet_160k import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = elsa_swin("small", drop_path_rate=0.3)

train.init_checkpoint = "pretrained/elsa_swin_small.pth"
train.output_dir = "output/elsa_s_upernet_160k"
