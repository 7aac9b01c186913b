"""The schedule of semantic segmentation: linear warm-up, then polynomial decay to 0 (of power 1: linear)."""

from fvcore.common.param_scheduler import PolynomialDecayParamScheduler

from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import WarmupParamScheduler

WARMUP_ITERATIONS = 1500


def poly(max_iter: int, warmup: int = WARMUP_ITERATIONS, power: float = 1.0):
    """The learning-rate multiplier for batches of 16."""
    return L(WarmupParamScheduler)(
        scheduler=L(PolynomialDecayParamScheduler)(base_value=1.0, power=power),
        warmup_length=warmup / max_iter,
        warmup_method="linear",
        warmup_factor=1e-6,
    )


max_iter_160k = 160_000
lr_multiplier_160k = poly(max_iter_160k)
max_iter_80k = 80_000
lr_multiplier_80k = poly(max_iter_80k)
