"""COCO schedules in epochs of batches of 16, with their warm-up."""

from fvcore.common.param_scheduler import MultiStepParamScheduler

from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import WarmupParamScheduler

# 117,266 training images with usable annotations, 16 a step
ITERATIONS_PER_EPOCH = 7330
WARMUP_ITERATIONS = 500


def multistep(max_iter: int, steps: tuple[int, int]):
    """The learning-rate multiplier: tenfold drops at the iterations ``steps``."""
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=list(steps), num_updates=max_iter),
        warmup_length=WARMUP_ITERATIONS / max_iter,
        warmup_method="linear",
        warmup_factor=0.001,
    )


def step_schedule(epochs: int, steps: tuple[int, int]):
    """The learning-rate multiplier and the number of iterations: tenfold drops after the epochs ``steps``."""
    max_iter = epochs * ITERATIONS_PER_EPOCH
    return multistep(max_iter, tuple(step * ITERATIONS_PER_EPOCH for step in steps)), max_iter


lr_multiplier_1x, max_iter_1x = step_schedule(12, (8, 11))
lr_multiplier_3x, max_iter_3x = step_schedule(36, (27, 33))
