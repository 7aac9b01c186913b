"""The switches of a training: read from the config, and refused where they contradict one another.

``train.accumulate``, ``train.ema``, ``train.best``, ``train.early_stopping``, ``train.clip_grad_norm``,
``train.bad_numbers`` and ``optimizer.params.lr_factor_func``; with the data's, copy-paste and large-scale jittering.
All are off by default; bad numbers stop a training.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ..d2 import comm, instantiate
from ..data.copy_paste import CopyPasteOptions
from ..errors import UserError
from ..evaluation import TTA_LABEL
from .bad_numbers import STOP, BadNumbersOptions
from .ema import EMA_LABEL
from .keep_best import unknown_metric
from .layer_decay import SwinLayerDecay

_LR_FACTOR = "optimizer.params.lr_factor_func"
_RESIZES = ("Resize", "ResizeShortestEdge", "ResizeScale", "RandomResize")
_COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")

_Options = TypeVar("_Options")


@dataclasses.dataclass(frozen=True)
class EMAOptions:
    """``train.ema``; ``evaluate`` is "both", "ema" or "raw": which weights evaluations in training look at."""

    enabled: bool = False
    decay: float = 0.9998
    warmup: bool = True
    evaluate: str = "both"


@dataclasses.dataclass(frozen=True)
class BestOptions:
    """``train.best``; without a metric nothing is kept."""

    metric: str | None = None
    mode: str = "max"


@dataclasses.dataclass(frozen=True)
class StoppingOptions:
    """``train.early_stopping``; without a metric training goes on to its end."""

    metric: str | None = None
    mode: str = "max"
    patience: int = 5
    min_delta: float = 0.0


@dataclasses.dataclass(frozen=True)
class CheckpointerOptions:
    """``train.checkpointer``; ``max_to_keep`` None keeps all."""

    period: int = 5000
    max_to_keep: int | None = None


@dataclasses.dataclass(frozen=True)
class Switches:
    """What a config asks for, checked."""

    accumulate: int
    ema: EMAOptions
    best: BestOptions
    early_stopping: StoppingOptions
    clip_grad_norm: float | None
    bad_numbers: BadNumbersOptions
    checkpointer: CheckpointerOptions = CheckpointerOptions()
    exact_resume: bool = False

    @property
    def metrics(self) -> dict[str, str]:
        """The metrics that something looks at, by the config key that names them."""
        named = {"train.best.metric": self.best.metric, "train.early_stopping.metric": self.early_stopping.metric}
        return {key: name for key, name in named.items() if name is not None}

    def describe(self) -> list[str]:
        """A line for each switch that is on, for the log."""
        lines = []
        if self.accumulate > 1:
            lines.append(f"gradients of {self.accumulate} micro-batches make a step")
        if self.ema.enabled:
            rising = ", rising to it" if self.ema.warmup else ""
            lines.append(
                f"moving average of the weights, decay {self.ema.decay:g}{rising}; evaluated: {self.ema.evaluate}"
            )
        if self.clip_grad_norm is not None:
            lines.append(f"gradients are clipped to a norm of {self.clip_grad_norm:g}")
        if self.bad_numbers.action != STOP:
            lines.append(f"losses and gradients that are not finite: {self.bad_numbers.action}")
        if self.best.metric is not None:
            lines.append(f"model_best.pth keeps the weights of the best {self.best.metric} ({self.best.mode})")
        if self.early_stopping.metric is not None:
            stop = self.early_stopping
            lines.append(
                f"training stops after {stop.patience} evaluations without a better {stop.metric} ({stop.mode})"
            )
        return lines


def read_switches(cfg: Any) -> Switches:
    """The switches of a config.

    Raises:
        UserError: a value is out of range, an option unknown, or two switches contradict one another; the message names
            key and value.
    """
    train = cfg.train
    switches = Switches(
        accumulate=train.get("accumulate", 1),
        ema=read_options(train, "ema", EMAOptions),
        best=read_options(train, "best", BestOptions),
        early_stopping=read_options(train, "early_stopping", StoppingOptions),
        clip_grad_norm=train.get("clip_grad_norm"),
        bad_numbers=read_options(train, "bad_numbers", BadNumbersOptions),
        checkpointer=read_options(train, "checkpointer", CheckpointerOptions),
        exact_resume=train.get("exact_resume", False),
    )
    _check_checkpoints(switches)
    _check_accumulation(cfg, switches.accumulate)
    if switches.clip_grad_norm is not None and not (
        _is_number(switches.clip_grad_norm) and switches.clip_grad_norm > 0
    ):
        raise UserError(f"train.clip_grad_norm={switches.clip_grad_norm!r} must be a positive norm, or null for none")
    _check_ema(cfg, switches.ema)
    _check_followers(cfg, switches)
    _check_layer_decay(cfg)
    _check_augmentation(cfg)
    return switches


def check_layer_decay(cfg: Any, model: nn.Module) -> None:
    """Raise if the config's layer-wise learning-rate decay is not made for the model's backbone.

    Raises:
        UserError: see :meth:`SwinLayerDecay.check`.
    """
    decay = _layer_decay(cfg)
    if decay is not None:
        decay.check(name for name, _ in model.named_parameters())


def read_options(train: Any, key: str, kind: type[_Options]) -> _Options:
    """The options ``train.<key>`` as a dataclass ``kind``; what is not given has its default.

    Raises:
        UserError: they are no options, or ``kind`` has none of that name.
    """
    given = train.get(key)
    given = {} if given is None else given
    if not isinstance(given, (dict, DictConfig)):
        raise UserError(f"train.{key}={given!r} must be options, such as train.{key}.{_names(kind)[0]}=…")
    for name in given:
        if name not in _names(kind):
            near = difflib.get_close_matches(str(name), _names(kind), n=1) or _names(kind)
            raise UserError(f"train.{key} has no option {name!r}: did you mean {', '.join(near)}?")
    return kind(**{str(name): given[name] for name in given})


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_accumulation(cfg: Any, accumulate: Any) -> None:
    if not _is_count(accumulate):
        raise UserError(f"train.accumulate={accumulate!r} must be a whole number of passes in a step, at least 1")
    total = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    if total is None:
        if accumulate > 1:
            raise UserError(
                f"train.accumulate={accumulate} divides dataloader.train.total_batch_size, which the config has not"
            )
        return
    processes = comm.get_world_size()
    if not _is_count(total) or total % (accumulate * processes):
        parts = f"{accumulate} passes (train.accumulate) of " if accumulate > 1 else ""
        raise UserError(
            f"dataloader.train.total_batch_size={total} does not divide into {parts}{processes} "
            f"process{'es' if processes > 1 else ''}: make it a multiple of {accumulate * processes}"
        )


def _check_checkpoints(switches: Switches) -> None:
    if not isinstance(switches.exact_resume, bool):
        raise UserError(f"train.exact_resume={switches.exact_resume!r} must be True or False")
    period, max_to_keep = switches.checkpointer.period, switches.checkpointer.max_to_keep
    if not _is_count(period):
        raise UserError(f"train.checkpointer.period={period!r} must be a number of iterations, at least 1")
    if max_to_keep is not None and not _is_count(max_to_keep):
        raise UserError(
            f"train.checkpointer.max_to_keep={max_to_keep!r} must be a number of files, at least 1, or null for all"
        )


def _check_ema(cfg: Any, ema: EMAOptions) -> None:
    if not ema.enabled:
        return
    if not _is_number(ema.decay) or not 0 < ema.decay < 1:
        raise UserError(f"train.ema.decay={ema.decay!r} must be between 0 and 1; 0.999 to 0.9999 are usual")
    if ema.evaluate not in ("both", "ema", "raw"):
        raise UserError(f"train.ema.evaluate={ema.evaluate!r} must be 'both', 'ema' or 'raw'")


def _check_followers(cfg: Any, switches: Switches) -> None:
    """What follows evaluations: the best checkpoint and early stopping."""
    best, stop, period = switches.best, switches.early_stopping, cfg.train.eval_period
    for key, metric, mode in (("best", best.metric, best.mode), ("early_stopping", stop.metric, stop.mode)):
        if metric is None:
            continue
        if mode not in ("max", "min"):
            raise UserError(f"train.{key}.mode={mode!r} must be 'max' or 'min'")
        if "evaluator" not in cfg.dataloader or "test" not in cfg.dataloader:
            raise UserError(f"train.{key} follows evaluations, and the config has none: it lacks dataloader.evaluator")
        if not _is_count(period):
            raise UserError(f"train.{key} follows evaluations in training: train.eval_period={period} makes none")
        _check_metric_name(cfg, switches, f"train.{key}.metric", metric)
    if stop.metric is None:
        return
    if not _is_count(stop.patience):
        raise UserError(f"train.early_stopping.patience={stop.patience!r} must be at least 1 evaluation")
    if not _is_number(stop.min_delta) or stop.min_delta < 0:
        raise UserError(f"train.early_stopping.min_delta={stop.min_delta!r} must be at least 0")
    if period * (stop.patience + 1) >= cfg.train.max_iter:
        raise UserError(
            f"train.early_stopping can never stop this run: with train.eval_period={period}, patience "
            f"{stop.patience} is used up after iteration {period * (stop.patience + 1)} at the earliest, and "
            f"train.max_iter is {cfg.train.max_iter}"
        )


def _check_metric_name(cfg: Any, switches: Switches, key: str, metric: Any) -> None:
    """What can be told of a metric's name before the first evaluation; that tells the rest."""
    if not isinstance(metric, str):
        raise UserError(f"{key}={metric!r} must be the name of a metric, such as 'bbox/AP'")
    task = metric.split("/")[0]
    averaged = task.endswith(EMA_LABEL)
    evaluated = {"both": (True, False), "ema": (True,), "raw": (False,)}[switches.ema.evaluate]
    if averaged not in (evaluated if switches.ema.enabled else (False,)):
        other = task.removesuffix(EMA_LABEL) if averaged else task + EMA_LABEL
        why = f"train.ema.evaluate={switches.ema.evaluate}" if switches.ema.enabled else "train.ema.enabled=False"
        raise UserError(f"{key}={metric}: with {why} there is {metric.replace(task, other, 1)} only")
    if _target_name(cfg.dataloader.evaluator) != "COCOEvaluator":
        return
    tta = OmegaConf.select(cfg, "train.tta.enabled", default=False)
    labels = [tta_label + (EMA_LABEL if averaged else "") for tta_label in ("", *([TTA_LABEL] if tta else []))]
    known = [
        f"{task}{label}/{name}" for task in ("bbox", "segm", "keypoints") for label in labels for name in _COCO_METRICS
    ]
    if metric not in known and not re.fullmatch(f"(bbox|segm|keypoints)({'|'.join(labels)})/AP-.+", metric):
        raise UserError(f"{key}={metric}: {unknown_metric(metric, known)}")


def _layer_decay(cfg: Any) -> SwinLayerDecay | None:
    try:
        node = OmegaConf.select(cfg, _LR_FACTOR)
        return instantiate(node) if _target_name(node) == "SwinLayerDecay" else None
    except OmegaConfBaseException as error:
        raise UserError(
            f"layer-wise learning-rate decay needs a backbone with stages; {_LR_FACTOR} cannot be resolved: "
            f"{str(error).splitlines()[0]}. Set its depths, or take it out"
        ) from error


def _check_layer_decay(cfg: Any) -> None:
    decay = _layer_decay(cfg)
    if decay is not None and OmegaConf.select(cfg, "optimizer.params.base_lr") is None:
        raise UserError(f"{_LR_FACTOR} multiplies optimizer.params.base_lr, which is not set")


def _check_augmentation(cfg: Any) -> None:
    loader = OmegaConf.select(cfg, "dataloader.train")
    if loader is None:
        return
    if _target_name(loader) == "build_copy_paste_train_loader":
        CopyPasteOptions.read(loader.get("copy_paste"))
        if not OmegaConf.select(loader, "mapper.use_instance_mask", default=True):
            raise UserError("copy-paste needs masks, but dataloader.train.mapper.use_instance_mask=False")
        if not OmegaConf.select(loader, "mapper.is_train", default=True):
            raise UserError("copy-paste is for training, but dataloader.train.mapper.is_train=False")
    elif loader.get("copy_paste") is not None:
        raise UserError(
            "dataloader.train.copy_paste is set, but the loader does not paste: set dataloader.train._target_ to "
            "elsa_det.data.build_copy_paste_train_loader, or take it out"
        )
    _check_order(OmegaConf.select(loader, "mapper.augmentations") or [])


def _check_order(augmentations: Any, jittered: bool = False) -> bool:
    """Raise if something resizes what large-scale jittering has sized; gives whether there was jittering."""
    for augmentation in augmentations:
        name = _target_name(augmentation)
        if jittered and name in _RESIZES:
            raise UserError(
                f"{name} after ResizeScale undoes large-scale jittering: take one of them out of "
                "dataloader.train.mapper.augmentations"
            )
        before = jittered
        jittered = jittered or name == "ResizeScale"
        for value in augmentation.values() if isinstance(augmentation, DictConfig) else ():
            if isinstance(value, ListConfig) and all(isinstance(branch, ListConfig) for branch in value):
                for branch in value:  # one of them happens
                    jittered = _check_order(branch, before) or jittered
    return jittered


def _target_name(node: Any) -> str:
    """The last part of the name of what a config calls; empty where it calls nothing."""
    target = node.get("_target_") if isinstance(node, (dict, DictConfig)) else None
    return target.rpartition(".")[2] if isinstance(target, str) else getattr(target, "__name__", "")
