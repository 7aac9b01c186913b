"""UPerNet, ELSA-Swin-T, 160k iterations on ADE20K.

Paper: 47.7 mIoU, several sizes and mirrored (released weights: 47.9).
"""

from ..common.models.backbones import elsa_swin
from .swin_t_upernet_160k import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = elsa_swin("tiny", drop_path_rate=0.3)
# The release decays the position bias of the window attention in ELSA's last stage.
optimizer.params.overrides.pop("relative_position_bias_table")

train.init_checkpoint = "pretrained/elsa_swin_tiny.pth"
train.output_dir = "output/elsa_t_upernet_160k"
