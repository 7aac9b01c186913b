"""What a training does first, tried without training: config, data, model, one batch, and the memory that it takes."""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..analysis import analyze, build_on_meta
from ..checkpoint import SafeCheckpointer, check_initial_weights, load_initial_weights
from ..config import check_complete, describe_device, load_config
from ..d2 import EventStorage, comm, describe_provider, instantiate, seed_all_rng
from ..data.coco_check import HEADERS, PIXELS
from ..data.loader_errors import with_named_errors
from ..errors import UserError
from ..evaluation import limit_evaluation, semantic_modes, with_tta
from .accumulation import micro_batch_loader
from .class_counts import check_class_count, settle_class_count
from .data_checks import check_level, check_own_data
from .datasets import check_datasets
from .determinism import check_deterministic, make_deterministic
from .memory_check import check_memory
from .output_folder import check_writable
from .process_memory import peak_bytes
from .run_options import check_run_options
from .switches import check_layer_decay, read_switches

_GB = 1e9


@dataclass(frozen=True)
class DryRun:
    """What a dry run found.

    Args:
        losses: of the batch.
        images: in the batch of a process, in one pass.
        image_size: (height, width) that the batch is padded to.
        seconds: for forward, backward and the step of the optimizer.
        parameters: of the model; ``trainable`` of them are not frozen.
        state_bytes: weights, gradients, what the optimizer keeps, and the moving average.
        activation_bytes: estimate of what is kept for the backward, of the whole batch; None if it cannot be told.
        peak_bytes: most memory that was in use, on CUDA of the device, otherwise of the process.
        lines: what there is to read.
    """

    losses: dict[str, float]
    images: int
    image_size: tuple[int, int]
    seconds: float
    parameters: int
    trainable: int
    state_bytes: int
    activation_bytes: int | None
    peak_bytes: int
    lines: list[str]


def dry_run(args: argparse.Namespace) -> DryRun:
    """Try what a training of ``args.config_file`` with ``args.opts`` would do first, print what is found, and stop.

    The config is resolved, own data is checked down to the images' headers, the model is built and gets its initial
    weights, and one batch goes forward and backward and makes a step. The output folder is not touched; images are
    loaded in this process.

    Raises:
        UserError, CheckpointError, FileNotFoundError: what would stop the training; also losses that are not finite,
            and memory that does not suffice on CUDA.
    """
    if args.eval_only:
        raise UserError("--dry-run tries a training: leave --eval-only out")
    cfg = load_config(args.config_file, args.opts)
    check_complete(cfg)
    check_run_options(cfg.train)
    output_dir = str(cfg.train.output_dir)
    check_writable(output_dir)
    read_switches(cfg)
    deterministic = check_deterministic(cfg)
    if not (args.resume and SafeCheckpointer(nn.Module(), output_dir).has_checkpoint()):
        check_initial_weights(cfg.train.init_checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        cfg.train.output_dir = folder
        check_datasets(cfg, ["train", "test"])
        settle_class_count(cfg)
        limited = limit_evaluation(cfg)
        lines = [f"Data: {line}" for line in check_own_data(cfg, PIXELS if check_level(cfg) == PIXELS else HEADERS)]
        lines += check_memory(limited)
        lines += make_deterministic(str(cfg.train.device)) if deterministic else []
        found = _try(limited, lines)
    if comm.is_main_process():
        print("\n".join(found.lines))
        print(f"Dry run of {args.config_file} passed; nothing was trained, and nothing written to {output_dir}.")
    return found


def _try(cfg: Any, lines: list[str]) -> DryRun:
    seed = cfg.train.get("seed", -1)
    seed_all_rng(None if seed < 0 else seed + comm.get_rank())
    switches = read_switches(cfg)
    model = instantiate(cfg.model)
    with_tta(cfg, model)
    semantic_modes(cfg, model)
    check_layer_decay(cfg, model)
    load_initial_weights(model, cfg.train.init_checkpoint, allow_mismatch=cfg.train.init_allow_mismatch)
    loader_config = micro_batch_loader(cfg.dataloader.train, switches.accumulate)
    if "num_workers" in loader_config:
        loader_config.num_workers = 0
    loader = instantiate(with_named_errors(loader_config, "train"))
    check_class_count(cfg, "train")
    if "evaluator" in cfg.dataloader:
        instantiate(cfg.dataloader.test)
        check_class_count(cfg, "test")
        instantiate(cfg.dataloader.evaluator)
    batch = next(iter(loader))
    with _explained(len(batch)):
        model.to(cfg.train.device)
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
        instantiate(cfg.lr_multiplier)
        losses, seconds = _step(model, batch, optimizer, cfg.train)
    wrong = [f"{name}={value}" for name, value in losses.items() if not math.isfinite(value)]
    if wrong:
        raise UserError(f"the losses of the first batch are not finite: {', '.join(wrong)}")

    parameters = list(model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
    kept = sum(t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t))
    state_bytes = weights * (2 if switches.ema.enabled else 1) + gradients + kept
    size = (max(image["image"].shape[1] for image in batch), max(image["image"].shape[2] for image in batch))
    activations, note = _activations(cfg, size, len(batch))
    on_cuda = str(cfg.train.device).startswith("cuda")
    peak = torch.cuda.max_memory_allocated() if on_cuda else peak_bytes()
    found = DryRun(
        losses=losses,
        images=len(batch),
        image_size=size,
        seconds=seconds,
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        state_bytes=state_bytes,
        activation_bytes=activations,
        peak_bytes=peak,
        lines=lines,
    )
    estimate = f"{state_bytes / _GB:.2f} GB for weights, gradients and optimizer"
    if activations is not None:
        estimate += f", about {activations / _GB:.2f} GB for the activations of the batch: {note}"
    else:
        estimate += f"; activations: {note}"
    lines += [
        f"Provider: {describe_provider()}",
        describe_device(cfg.train),
        f"Model: {type(model).__name__}, {found.parameters / 1e6:.2f} M parameters, {found.trainable / 1e6:.2f} M of "
        "them trained",
        f"Batch: {found.images} images in a pass of a process, up to {size[0]} x {size[1]} (height x width), "
        f"{seconds:.1f} s; losses {', '.join(f'{name} {value:.4g}' for name, value in losses.items())}; total "
        f"{sum(losses.values()):.4g}",
        f"Memory estimate: {estimate}",
        f"Memory measured: {peak / _GB:.2f} GB at the peak, of the {'device' if on_cuda else 'whole process'}",
    ]
    return found


def _step(model: nn.Module, batch: Any, optimizer: Any, train: Any) -> tuple[dict[str, float], float]:
    began = time.perf_counter()
    model.train()
    amp = torch.autocast(torch.device(str(train.device)).type, enabled=bool(train.amp.enabled))
    with EventStorage(0), amp:
        losses = model(batch)
    losses = losses if isinstance(losses, dict) else {"total_loss": losses}
    total = sum(losses.values())
    assert isinstance(total, torch.Tensor)
    total.backward()
    if torch.isfinite(total):
        optimizer.step()
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    return values, time.perf_counter() - began


def _activations(cfg: Any, size: tuple[int, int], images: int) -> tuple[int | None, str]:
    """Bytes kept for the backward of a batch, and what the figure is."""
    try:
        kept = analyze(build_on_meta(cfg.model), size).kept_bytes
    except UserError as error:
        return None, str(error)
    assert kept is not None
    if cfg.train.amp.enabled:
        return kept * images // 2, "half of those in float32, for mixed precision"
    return kept * images, "in float32"


@contextmanager
def _explained(images: int) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"the device's memory does not suffice for {images} images in a pass: {str(error).splitlines()[0]} Set "
            "train.accumulate=2 or more, dataloader.train.total_batch_size lower, or dataset.image_size smaller"
        ) from error
    except FloatingPointError as error:  # of heads that look at their scores
        raise UserError(f"the losses of the first batch are not finite: {error}") from error
