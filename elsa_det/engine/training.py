"""Training and evaluation of a LazyConfig: what ``tools/lazyconfig_train_net.py`` runs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from ..checkpoint import CheckpointError, check_initial_weights, load_initial_weights
from ..config import check_complete, describe_device, load_config, stamp_config
from ..d2 import (
    AMPTrainer,
    DetectionCheckpointer,
    MetadataCatalog,
    SimpleTrainer,
    comm,
    create_ddp_model,
    default_setup,
    default_writers,
    describe_provider,
    hooks,
    inference_on_dataset,
    instantiate,
    print_csv_format,
    setup_logger,
)
from ..errors import UserError

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> Any:
    """Train, or evaluate with ``--eval-only``, what ``args.config_file`` with ``args.opts`` describes.

    Returns:
        The results of the (last) evaluation, ``{"bbox": {"AP": …}, "segm": …}``, or None without an evaluator.
    """
    cfg = load_config(args.config_file, args.opts)
    check_complete(cfg)
    resuming = args.resume and not args.eval_only and _has_checkpoint(cfg)
    check_datasets(cfg, ["test"] if args.eval_only else ["train", "test"])
    if not resuming:
        check_initial_weights(cfg.train.init_checkpoint)
    default_setup(cfg, args)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="elsa_det")
    if comm.is_main_process():
        stamp_config(Path(cfg.train.output_dir) / "config.yaml")
    logger.info("Running on %s", describe_provider())
    logger.info(describe_device(cfg.train))
    return evaluate_only(cfg) if args.eval_only else train(cfg, resume=resuming)


def _has_checkpoint(cfg: Any) -> bool:
    return DetectionCheckpointer(nn.Module(), cfg.train.output_dir).has_checkpoint()


def evaluate(cfg: Any, model: nn.Module) -> Any:
    """Run the config's evaluator over its test set; None where the config has none."""
    if "evaluator" not in cfg.dataloader:
        return None
    loader = instantiate(cfg.dataloader.test)
    check_class_count(cfg, cfg.dataloader.test)
    results = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))
    print_csv_format(results)
    return results


def evaluate_only(cfg: Any) -> Any:
    """Evaluate the whole-model checkpoint ``train.init_checkpoint``.

    Raises:
        CheckpointError: the file does not hold weights for every part of the model.
    """
    model = instantiate(cfg.model)
    report = load_initial_weights(model, cfg.train.init_checkpoint)
    if report is None or report.initialised:
        raise CheckpointError(
            f"--eval-only needs a checkpoint of the whole model, and train.init_checkpoint={cfg.train.init_checkpoint} "
            "leaves parts of it untrained"
        )
    model.to(cfg.train.device)
    return evaluate(cfg, create_ddp_model(model))


def train(cfg: Any, *, resume: bool = False) -> Any:
    """Train from ``train.init_checkpoint``, or with ``resume`` from the last checkpoint of the output folder."""
    model = instantiate(cfg.model)
    logger.info("Model:\n%s", model)
    if not resume:
        load_initial_weights(model, cfg.train.init_checkpoint, allow_mismatch=cfg.train.init_allow_mismatch)
    model.to(cfg.train.device)

    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    if cfg.train.clip_grad_norm is not None:
        _clip_before_step(optimizer, cfg.train.clip_grad_norm)

    loader = instantiate(cfg.dataloader.train)
    check_class_count(cfg, cfg.dataloader.train)
    model = create_ddp_model(model, **cfg.train.ddp)
    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if comm.is_main_process() else None,
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(cfg, model)),
            hooks.PeriodicWriter(default_writers(cfg.train.output_dir, cfg.train.max_iter), period=cfg.train.log_period)
            if comm.is_main_process()
            else None,
        ]
    )
    start_iter = 0
    if resume:
        checkpointer.resume_or_load("", resume=True)
        start_iter = trainer.iter + 1
    trainer.train(start_iter, cfg.train.max_iter)
    return getattr(trainer, "_last_eval_results", None)


def _clip_before_step(optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """Clip the norm of all gradients together; with a gradient scaler this runs after its unscaling."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parameters, max_norm)

    optimizer.register_step_pre_hook(clip)


def check_datasets(cfg: Any, loaders: Sequence[str]) -> None:
    """Raise if a dataset that the config names is not there; own data is registered on the way.

    Raises:
        UserError, FileNotFoundError: see :func:`elsa_det.data.registered_coco`.
    """
    for loader in loaders:
        names = OmegaConf.select(cfg, f"dataloader.{loader}.dataset.names")
        if names is not None:
            instantiate(names)


def check_class_count(cfg: Any, loader: Any) -> None:
    """Raise if the dataset of a loader config has another number of classes than the model.

    Raises:
        UserError: naming both numbers.
    """
    names = instantiate(loader.dataset.names)
    roi_heads = cfg.model.get("roi_heads")
    if roi_heads is None or "num_classes" not in roi_heads:
        return
    for name in [names] if isinstance(names, str) else names:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is not None and len(classes) != roi_heads.num_classes:
            listed = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
            raise UserError(
                f"dataset {name} has {len(classes)} classes ({listed}), the model {roi_heads.num_classes}: "
                f"set model.roi_heads.num_classes={len(classes)}"
            )
