"""An exponential moving average of a model's weights beside its training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..checkpoint import SafeCheckpointer
from ..d2 import HookBase, comm

logger = logging.getLogger(__name__)

#: what the names of evaluated tasks end in when the averaged weights were evaluated, as in "bbox_EMA"
EMA_LABEL = "_EMA"
#: under which checkpoints keep the average
EMA_KEY = "ema_state"
#: written at the end: the averaged weights as the weights of a model, for evaluation, prediction and fine-tuning
EMA_FILE = "model_final_ema"


class WeightsWriter(SafeCheckpointer):
    """Writes weights beside the checkpoints of a run, without becoming what ``--resume`` goes on from."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


class ModelEMA(HookBase):
    """Averages parameters and buffers after every step: ``average += (1 - decay) * (weights - average)``.

    With warm-up the decay is ``min(decay, 1 - iteration ** (-2 / 3))``, iterations counted from 1: at first little more
    than the latest weights, after 1,000 iterations 0.99, after 31,600 0.999. The first iteration's weights start the
    average either way. Integer buffers are copied. The rate depends on nothing but the iteration, so that a resumed run
    averages as an uninterrupted one.

    Args:
        model: on its device, with the weights to start from, not wrapped for distributed training.
        decay: in (0, 1).
        warmup: whether the decay rises to that value.
        output_dir: where ``model_final_ema.pth`` is written after the last iteration; None does not write.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = True, output_dir: str | None = None) -> None:
        self._source = model
        self._average = ModelEmaV3(model, decay=decay, use_warmup=warmup)
        self._average.module.requires_grad_(False)
        self._writer = None if output_dir is None else WeightsWriter(self.model, output_dir)
        self._loaded = False

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights, in eval mode."""
        return self._average.module

    @property
    def checkpointable(self) -> _Average:
        """What a checkpointer keeps under ``ema_state``; the state of the hook itself stays empty."""
        return _Average(self)

    def after_step(self) -> None:
        if getattr(self.trainer, "step_taken", True):  # a step left out changed nothing to average
            self._average.update(self._source, step=self.trainer.iter + 1)
        if self.trainer.iter + 1 == self.trainer.max_iter:
            self.write_final()

    def write_final(self) -> None:
        """Write ``model_final_ema.pth``, on the main process."""
        if self._writer is not None:
            self._writer.save(EMA_FILE, iteration=self.trainer.iter)

    def settle_after_resume(self, checkpoint: str | Path) -> None:
        """Call on all processes once a run has resumed: where the checkpoint had no average, start from its weights."""
        loaded = comm.all_gather(self._loaded)
        if not loaded[0]:
            logger.warning("%s has no %s: the moving average starts from its weights", checkpoint, EMA_KEY)
            self._average.set(self._source)
        elif not all(loaded):  # some process could not read the file
            for tensor in self.model.state_dict().values():
                dist.broadcast(tensor, src=0)


class _Average:
    """The averaged weights as something a checkpointer saves and loads."""

    def __init__(self, ema: ModelEMA) -> None:
        self._ema = ema

    def state_dict(self) -> dict[str, Any]:
        return self._ema.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._ema.model.load_state_dict(state)
        self._ema._loaded = True
