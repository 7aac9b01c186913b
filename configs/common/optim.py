"""AdamW of the ELSA and Swin recipes: no weight decay on norms and position embeddings."""

from torch.optim import AdamW

from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import get_default_optimizer_params

optimizer = L(AdamW)(
    params=L(get_default_optimizer_params)(
        # model is set by the training loop
        base_lr="${..lr}",
        weight_decay_norm=0.0,
        overrides=dict(
            relative_position_bias_table=dict(weight_decay=0.0),
            absolute_pos_embed=dict(weight_decay=0.0),
        ),
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)
