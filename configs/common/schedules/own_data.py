"""A schedule for data of any size: a short warm-up, then a cosine over ``train.max_iter``, whatever that is."""

from fvcore.common.param_scheduler import CosineParamScheduler

from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import WarmupParamScheduler

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.05,
    warmup_method="linear",
    warmup_factor=0.001,
)
