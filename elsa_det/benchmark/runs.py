"""Workloads that are set up and can be run step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from ..checkpoint import load_initial_weights
from ..d2 import EventStorage, instantiate, seed_all_rng
from ..errors import UserError
from .made_up import made_up_image
from .parts import REST, Clock, PartTimer
from .workload import DATA, INFERENCE, Workload, class_count


@dataclass
class Sample:
    """One step: seconds on the whole and of its parts, which may lie within one another as "forward/backbone"."""

    seconds: float
    images: int
    parts: dict[str, float] = field(default_factory=dict)
    detections: int | None = None


class Exhausted(Exception):
    """The data loader has no more batches."""


class Run:
    """A workload that is ready; :meth:`step` does it once."""

    def __init__(self, work: Workload, cfg: Any) -> None:
        self.work = work
        self.device = str(cfg.train.device) if "train" in cfg else "cpu"
        self.clock = Clock(self.device)
        self.inputs = work.inputs(cfg)
        self.notes: list[str] = []

    def step(self, index: int) -> Sample:
        raise NotImplementedError

    def _build_model(self, cfg: Any) -> nn.Module:
        seed_all_rng(0)
        model = instantiate(cfg.model)
        if self.work.load_weights:
            load_initial_weights(model, cfg.train.init_checkpoint)
            self.notes.append(f"weights: {cfg.train.init_checkpoint}")
        else:
            self.notes.append("weights: initial")
        return model.to(self.device)


def set_up(work: Workload) -> Run:
    """Build what a workload needs.

    Raises:
        FileNotFoundError, UserError: the config, the weights or the data are not there or do not go together.
    """
    cfg = work.load()
    return {INFERENCE: InferenceRun, DATA: DataRun}.get(work.task, TrainRun)(work, cfg)


def _made_up_batches(work: Workload, cfg: Any, count: int, batch: int) -> list[list[dict[str, Any]]]:
    assert work.random_size is not None
    classes, rng = class_count(cfg), np.random.default_rng(0)
    mask_format = OmegaConf.select(cfg, "dataloader.train.mapper.instance_mask_format") or "polygon"
    return [
        [made_up_image(work.random_size, work.objects, classes, rng, mask_format) for _ in range(batch)]
        for _ in range(count)
    ]


class InferenceRun(Run):
    """The model on batches that lie ready in memory, as evaluation calls it: fp32, no gradients."""

    def __init__(self, work: Workload, cfg: Any) -> None:
        super().__init__(work, cfg)
        self.model = self._build_model(cfg).eval()
        if work.random_size is not None:
            self.batches = _made_up_batches(work, cfg, work.pool, work.batch or 1)
        else:
            self.batches = list(islice(iter(work.open_loader(cfg)), work.pool))
        if not self.batches:
            raise UserError(f"{work.config_file}: the test loader gives no images")
        self.timer = PartTimer(self.model, self.clock)

    def step(self, index: int) -> Sample:
        batch = self.batches[index % len(self.batches)]
        begin = self.clock.wait()
        with torch.no_grad():
            first = self.clock.mark()
            outputs = self.model(batch)
            last = self.clock.mark()
        seconds = self.clock.wait() - begin
        parts = self.timer.take()
        parts[REST] = self.clock.between(first, last) - sum(parts.values())
        return Sample(seconds, len(batch), parts, _count_detections(outputs))


def _count_detections(outputs: Any) -> int | None:
    if not isinstance(outputs, list) or not all(isinstance(o, dict) and "instances" in o for o in outputs):
        return None
    return sum(len(output["instances"]) for output in outputs)


class TrainRun(Run):
    """A step of training as :class:`SimpleTrainer` or :class:`AMPTrainer` does it, in its parts.

    The learning rate is zero: the optimizer does its work, but the weights stay, so that every step has the same to do.
    """

    def __init__(self, work: Workload, cfg: Any) -> None:
        super().__init__(work, cfg)
        self.model = self._build_model(cfg).train()
        cfg.optimizer.params.model = self.model
        self.optimizer = instantiate(cfg.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.max_norm = cfg.train.get("clip_grad_norm")
        self.amp = bool(OmegaConf.select(cfg, "train.amp.enabled")) and self.clock.on_gpu
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.amp)  # type: ignore[attr-defined]
        self.notes.append("mixed precision" if self.amp else "fp32")
        self.accumulate = cfg.train.get("accumulate", 1)
        if self.accumulate > 1:
            self.notes.append(f"a step in {self.accumulate} passes")
        if OmegaConf.select(cfg, "train.ema.enabled"):
            self.notes.append("without the update of the moving average of the weights")
        self._spans: dict[str, list[tuple[Any, Any]]] = {}
        self.batches = self._open(cfg)
        self.timer = PartTimer(self.model, self.clock)
        self.storage = EventStorage(0)

    def _open(self, cfg: Any) -> Iterator[list[dict[str, Any]]]:
        work = self.work
        loader = OmegaConf.select(cfg, "dataloader.train")
        size = work.batch or (loader.total_batch_size if loader is not None else self.accumulate)
        if size % self.accumulate:
            raise UserError(
                f"a batch of {size} images cannot be divided into train.accumulate={self.accumulate} passes"
            )
        size //= self.accumulate
        if work.random_size is None:
            loader.total_batch_size = size
            return iter(work.open_loader(cfg))
        return cycle(_made_up_batches(work, cfg, min(work.pool, 2), size))

    def step(self, index: int) -> Sample:
        clock, spans = self.clock, self._spans
        begin = clock.wait()
        waited, images = 0.0, 0
        spans.clear()
        with self.storage, self._span("optimizer"):
            self.optimizer.zero_grad()
        for _ in range(self.accumulate):
            asked = clock.wait()
            batch = next(self.batches, None)
            if batch is None:
                raise Exhausted
            waited += clock.wait() - asked
            images += len(batch)
            with self.storage, self._span("forward"), torch.autocast("cuda", dtype=torch.float16, enabled=self.amp):
                losses = self.model(batch)
                total = losses if isinstance(losses, torch.Tensor) else sum(losses.values())
            with self._span("backward"):
                self.scaler.scale(total / self.accumulate).backward()
        with self._span("optimizer"):
            if self.max_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        seconds = clock.wait() - begin
        total = total.detach()
        if not bool(torch.isfinite(total)):
            raise UserError(
                f"{self.work.name}: the loss is {float(total)} at step {index}, so this is no training step"
            )
        spent = {name: sum(clock.between(*span) for span in found) for name, found in spans.items()}
        inner = self.timer.take()
        inner[REST] = spent["forward"] - sum(inner.values())
        parts = {"data": waited, "forward": spent["forward"]}
        parts |= {f"forward/{name}": value for name, value in inner.items()}
        return Sample(seconds, images, {**parts, "backward": spent["backward"], "optimizer": spent["optimizer"]})

    @contextmanager
    def _span(self, name: str) -> Iterator[None]:
        first = self.clock.mark()
        yield
        self._spans.setdefault(name, []).append((first, self.clock.mark()))


class DataRun(Run):
    """The data loader alone."""

    def __init__(self, work: Workload, cfg: Any) -> None:
        super().__init__(work, cfg)
        seed_all_rng(0)
        loader = work.open_loader(cfg)
        begin = self.clock.wait()
        self.batches = iter(loader)
        self._first: list[Any] | None = next(self.batches, None)
        if self._first is None:
            raise UserError(f"{work.config_file}: the {work.split} loader gives no images")
        workers = cfg.dataloader[work.split].get("num_workers", 0)
        self.notes.append(f"{work.split} loader, {workers} workers")
        self.notes.append(f"first batch after {self.clock.wait() - begin:.2f} s")

    def step(self, index: int) -> Sample:
        begin = self.clock.wait()
        batch = next(self.batches, None)
        if batch is None:
            raise Exhausted
        return Sample(self.clock.wait() - begin, len(batch))
