"""The training loop, its hooks, and the setup every training command shares."""

from __future__ import annotations

from . import hooks
from .defaults import create_ddp_model, default_argument_parser, default_setup, default_writers
from .hooks import (
    BestCheckpointer,
    CallbackHook,
    EvalHook,
    IterationTimer,
    LRScheduler,
    PeriodicCheckpointer,
    PeriodicWriter,
)
from .launch import DEFAULT_TIMEOUT, launch
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
