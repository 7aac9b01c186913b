"""Training and evaluation of a LazyConfig: what ``tools/lazyconfig_train_net.py`` runs."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from ..checkpoint import CheckpointError, SafeCheckpointer, check_initial_weights, load_initial_weights
from ..config import check_complete, describe_device, load_config, stamp_config
from ..d2 import (
    comm,
    default_setup,
    describe_provider,
    hooks,
    instantiate,
    print_csv_format,
    setup_logger,
)
from ..data.loader_errors import with_named_errors
from ..data.workers import worker_deaths_explained
from ..evaluation import (
    WHOLE,
    evaluate_modes,
    evaluate_with_tta,
    limit_evaluation,
    run_inference,
    semantic_modes,
    with_tta,
)
from .accumulation import make_trainer, micro_batch_loader
from .bad_numbers import NumberGuard
from .checkpoints import Checkpoints, prepare_folder
from .class_counts import check_class_count, settle_class_count
from .data_checks import check_own_data
from .data_order import make_train_loader
from .datasets import check_datasets
from .determinism import check_deterministic, make_deterministic
from .dry_run import dry_run
from .ema import EMA_KEY, EMA_LABEL, ModelEMA, WeightsWriter
from .exact_resume import ExactResume, MissedEvaluation, MissedLine
from .gradients import ClipGradients
from .keep_best import CheckpointAfterEvaluation, EarlyStopping, KeepBest, TrainingStopped, require_metrics
from .memory_check import check_memory
from .output_folder import check_writable
from .parallel import data_parallel
from .progress import show_progress
from .random_state import random_numbers_kept
from .run_options import check_run_options
from .run_pictures import run_pictures
from .run_records import write_records
from .semantic_figures import save_confusion_figure
from .stop_signals import REQUEUE, Requeue, StopSignals
from .switches import Switches, check_layer_decay, read_switches
from .writers import run_writers

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> Any:
    """Train, or evaluate with ``--eval-only``, what ``args.config_file`` with ``args.opts`` describes.

    With ``--dry-run`` it does neither, and tries what a training would do first: see :func:`~.dry_run.dry_run`.

    Returns:
        The results of the (last) evaluation, ``{"bbox": {"AP": …}, "segm": …}``, or None without an evaluator.
    """
    if getattr(args, "dry_run", False):
        return dry_run(args)
    cfg = load_config(args.config_file, args.opts)
    check_complete(cfg)
    check_writable(cfg.train.output_dir)
    deterministic = check_deterministic(cfg)
    check_run_options(cfg.train, training=not args.eval_only)
    if not args.eval_only:
        read_switches(cfg)  # those that contradict one another are said before the work
    resuming = args.resume and not args.eval_only and _has_checkpoint(cfg)
    check_datasets(cfg, ["test"] if args.eval_only else ["train", "test"])
    settle_class_count(cfg)
    if not resuming:
        check_initial_weights(cfg.train.init_checkpoint)
    limited = limit_evaluation(cfg)
    checked = [] if args.eval_only else [f"Data: {line}" for line in check_own_data(cfg)] + check_memory(limited)
    default_setup(cfg, args)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="elsa_det")
    if comm.is_main_process():
        stamp_config(Path(cfg.train.output_dir) / "config.yaml")
    write_records(cfg.train.output_dir, anew=not (args.resume or args.eval_only))
    logger.info("Running on %s", describe_provider())
    logger.info(describe_device(cfg.train))
    for line in checked + (make_deterministic(str(cfg.train.device)) if deterministic else []):
        logger.info(line)
    if args.resume and not args.eval_only and not resuming:
        folder = Path(cfg.train.output_dir).absolute()
        logger.warning("--resume: there is no checkpoint in %s, so this starts at iteration 0", folder)
    return evaluate_only(limited) if args.eval_only else train(limited, resume=resuming)


def _has_checkpoint(cfg: Any) -> bool:
    return SafeCheckpointer(nn.Module(), cfg.train.output_dir).has_checkpoint()


def evaluate(cfg: Any, model: nn.Module, *, label: str = "") -> Any:
    """Run the config's evaluator over its test set; None where the config has none.

    With ``train.tta`` on it runs a second time, and the results have both: ``bbox``, ``segm``, ``bbox_TTA``,
    ``segm_TTA``. Segmentors run once for each of ``train.semantic_modes``: ``sem_seg``, ``sem_seg_slide``,
    ``sem_seg_ms``.
    A ``label`` is put behind each of these names, and the evaluator's files go to a folder of that name in its own.
    """
    if "evaluator" not in cfg.dataloader:
        return None
    loader = instantiate(with_named_errors(cfg.dataloader.test, "test"))
    check_class_count(cfg, "test")
    with _files_apart(cfg, label):
        results = {}
        if WHOLE in semantic_modes(cfg, model):
            evaluator = instantiate(cfg.dataloader.evaluator)
            results = run_inference(model, loader, evaluator)
            save_confusion_figure(evaluator)
        results = {**results, **evaluate_with_tta(cfg, model)}
        results |= evaluate_modes(cfg, model, evaluated=save_confusion_figure)
    results = {f"{task}{label}": scores for task, scores in results.items()}
    print_csv_format(results)
    return results


@contextlib.contextmanager
def _files_apart(cfg: Any, label: str) -> Iterator[None]:
    """Within it, evaluators write to a folder ``inference<label>`` in their own; without a label, to their own."""
    evaluators = cfg.dataloader.evaluator
    evaluators = evaluators if OmegaConf.is_list(evaluators) else [evaluators]
    written = {i: e.output_dir for i, e in enumerate(evaluators) if label and e.get("output_dir") is not None}
    before = {i: evaluators[i]._get_node("output_dir")._value() for i in written}  # an interpolation stays one
    for i, folder in written.items():
        evaluators[i].output_dir = os.path.join(folder, f"inference{label}")
    try:
        yield
    finally:
        for i, folder in before.items():
            evaluators[i].output_dir = folder


def evaluate_only(cfg: Any) -> Any:
    """Evaluate the whole-model checkpoint ``train.init_checkpoint``.

    Raises:
        CheckpointError: the file does not hold weights for every part of the model.
    """
    model = instantiate(cfg.model)
    with_tta(cfg, model)  # options that cannot be are said before the work
    semantic_modes(cfg, model)
    report = load_initial_weights(model, cfg.train.init_checkpoint)
    if report is None or report.initialised:
        raise CheckpointError(
            f"--eval-only needs a checkpoint of the whole model, and train.init_checkpoint={cfg.train.init_checkpoint} "
            "leaves parts of it untrained"
        )
    model.to(cfg.train.device)
    with show_progress(cfg.train), worker_deaths_explained():
        return evaluate(cfg, data_parallel(model))


def train(cfg: Any, *, resume: bool = False) -> Any:
    """Train from ``train.init_checkpoint``, or with ``resume`` from the last checkpoint of the output folder.

    Returns:
        The results of the last evaluation; empty on all but the main process, None without an evaluator.

    Raises:
        SystemExit: with the code 75, where SIGTERM or SIGUSR1 asked for an end and the state is saved.
    """
    switches = read_switches(cfg)
    model = instantiate(cfg.model)
    logger.info("Model:\n%s", model)
    with_tta(cfg, model)  # options that cannot be are said before the work
    semantic_modes(cfg, model)
    check_layer_decay(cfg, model)
    if not resume:
        load_initial_weights(model, cfg.train.init_checkpoint, allow_mismatch=cfg.train.init_allow_mismatch)
    model.to(cfg.train.device)

    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader_config = with_named_errors(micro_batch_loader(cfg.dataloader.train, switches.accumulate), "train")
    if switches.exact_resume:
        loader, inexact = make_train_loader(loader_config, seed=cfg.train.get("seed"))
        if inexact is not None:
            logger.warning("A resumed run will take its data in another order: %s", inexact)
    else:
        loader = instantiate(loader_config)
    check_class_count(cfg, "train")
    for line in switches.describe():
        logger.info("Switched on: %s", line)

    output_dir, eval_period = cfg.train.output_dir, cfg.train.eval_period
    parallel = data_parallel(model, **cfg.train.ddp)
    guard = NumberGuard(switches.bad_numbers, output_dir)
    trainer = make_trainer(
        parallel, loader, optimizer, amp=cfg.train.amp.enabled, accumulate=switches.accumulate, guard=guard
    )
    ema = None
    if switches.ema.enabled:  # made once all processes have the same weights
        ema = ModelEMA(model, switches.ema.decay, warmup=switches.ema.warmup, output_dir=output_dir)
    averaged = {} if ema is None else {EMA_KEY: ema.checkpointable}
    guard.also.update(averaged)
    checkpointer = SafeCheckpointer(parallel, output_dir, trainer=trainer, **averaged)
    evaluation = _Evaluation(cfg, parallel, ema, switches)
    exact = ExactResume(model, loader) if switches.exact_resume else None
    signals = StopSignals()
    checkpoints = Checkpoints(
        checkpointer,
        switches.checkpointer.period,
        switches.checkpointer.max_to_keep,
        signals=signals,
        before_save=None if exact is None else exact.gather,
    )

    def write_final() -> None:
        if missed is not None:
            missed.mark()  # the evaluation after which the training stops is done
        checkpoints.save("model_final")
        if ema is not None:
            ema.write_final()

    best, stop = switches.best, switches.early_stopping
    stopping = None
    if stop.metric is not None:
        stopping = EarlyStopping(eval_period, stop.metric, stop.mode, stop.patience, stop.min_delta, write_final)
    main = comm.is_main_process()
    evaluating = [
        hooks.EvalHook(eval_period, evaluation),
        _keep_best(cfg, best.metric, best.mode, model, ema) if best.metric is not None and main else None,
        stopping,
    ]
    again = CheckpointAfterEvaluation(checkpointer, eval_period) if main and switches.metrics else None
    missed = None
    if exact is not None and switches.metrics:
        missed = MissedEvaluation(eval_period, exact, [*evaluating, again])
    writers = run_writers(cfg, resume=resume) if main else []
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            None if switches.clip_grad_norm is None else ClipGradients(optimizer, switches.clip_grad_norm),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            ema,
            exact,
            checkpoints,
            *evaluating,
            missed,
            again,
            MissedLine(writers, cfg.train.log_period) if main and exact is not None else None,
            hooks.PeriodicWriter(writers, cfg.train.log_period) if main else None,
            run_pictures(cfg, model, ema, switches),
        ]
    )
    start_iter = 0
    if main:
        prepare_folder(output_dir)
    if resume:
        left_over = checkpointer.resume_or_load("", resume=True)
        start_iter = trainer.iter + 1
        if ema is not None:
            ema.settle_after_resume(checkpointer.resumed_from)
        elif EMA_KEY in left_over:
            logger.warning("The checkpoint holds a moving average (%s), and train.ema is off: it is dropped", EMA_KEY)
    if stopping is not None and comm.all_gather(stopping.exhausted)[0]:
        logger.warning(
            "Not going on, because the run had stopped early: %s. Raise train.early_stopping.patience to go on.",
            stopping.describe(),
        )
        return evaluation()
    try:
        with (
            contextlib.suppress(TrainingStopped),
            show_progress(cfg.train, trainer),
            worker_deaths_explained(),
            signals.caught(),
        ):
            trainer.train(start_iter, cfg.train.max_iter)
    except Requeue:
        raise SystemExit(REQUEUE) from None
    return evaluation.results


class _Evaluation:
    """The evaluations of a training: of the weights, of their moving average, or of both."""

    def __init__(self, cfg: Any, model: nn.Module, ema: ModelEMA | None, switches: Switches) -> None:
        self._cfg, self._model, self._ema, self._switches = cfg, model, ema, switches
        self.results: Any = None  # of the last time

    def __call__(self) -> Any:
        with random_numbers_kept() if self._switches.exact_resume else contextlib.nullcontext():
            return self._evaluate()  # a resumed run may not have this evaluation

    def _evaluate(self) -> Any:
        which = "raw" if self._ema is None else self._switches.ema.evaluate
        results: dict[str, Any] = {}
        if which != "ema":
            results.update(evaluate(self._cfg, self._model) or {})
        if self._ema is not None and which != "raw":
            logger.info("Evaluating the moving average of the weights")
            with random_numbers_kept():
                results.update(evaluate(self._cfg, self._ema.model, label=EMA_LABEL) or {})
        self.results = results if "evaluator" in self._cfg.dataloader else None
        require_metrics(results, self._switches.metrics)
        return self.results


def _keep_best(cfg: Any, metric: str, mode: str, model: nn.Module, ema: ModelEMA | None) -> KeepBest:
    """Keeps ``model_best.pth``: the averaged weights if the metric is theirs."""
    averaged = ema is not None and metric.split("/")[0].endswith(EMA_LABEL)
    writer = WeightsWriter(ema.model if averaged and ema is not None else model, cfg.train.output_dir)
    return KeepBest(cfg.train.eval_period, writer, metric, mode)
