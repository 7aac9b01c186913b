"""Losses and gradients that are not finite: caught on all processes together, before they reach weights or averages.

A trainer of :mod:`.accumulation` asks its :class:`NumberGuard` after each forward pass and before each step of the
optimizer. An incident is written down (:mod:`.incidents`); then training stops, leaves the step out, or goes back to
a state that was good, as ``train.bad_numbers`` says.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..d2 import HookBase, comm
from ..errors import UserError, list_some
from .incidents import Incident, describe_batch, write_incident
from .snapshot import BuffersBefore, Snapshot, unwrapped

logger = logging.getLogger(__name__)

STOP, SKIP, ROLLBACK, OFF = "stop", "skip", "rollback", "off"
#: where incidents are written, in the output folder
FILE = "bad_numbers.jsonl"

_LOWEST_SCALE = 1.0  # of a gradient scaler: what overflows unscaled does not for being scaled


class BadNumbersError(UserError, FloatingPointError):
    """Training was stopped because of losses or gradients that are not finite."""


@dataclasses.dataclass(frozen=True)
class BadNumbersOptions:
    """``train.bad_numbers``.

    Args:
        action: "stop", "skip" (the step), "rollback" (to the last snapshot), or "off": Detectron2's own check alone.
        max_in_a_row: so many incidents one after the other, without a good step between them, stop the training. With
            a gradient scaler also: so many overflows one after the other are an incident.
        max_total: so many incidents in all stop the training.
        snapshot_period: with "rollback", iterations from one snapshot to the next.

    Raises:
        UserError: a value is out of range.
    """

    action: str = STOP
    max_in_a_row: int = 10
    max_total: int = 100
    snapshot_period: int = 100

    def __post_init__(self) -> None:
        if self.action not in (STOP, SKIP, ROLLBACK, OFF):
            raise UserError(f"train.bad_numbers.action={self.action!r} must be 'stop', 'skip', 'rollback' or 'off'")
        for name in ("max_in_a_row", "max_total", "snapshot_period"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"train.bad_numbers.{name}={value!r} must be a whole number, at least 1")


class NumberGuard(HookBase):
    """Watches the numbers of a trainer; all processes have one, and decide the same.

    A hook for the sake of its counters, which checkpoints keep; :func:`~.accumulation.make_trainer` registers it.

    With a gradient scaler an overflow is the scaler's business, which leaves the step out and halves its scale. It is
    an incident once the scale has come down to 1, or after ``max_in_a_row`` overflows one after the other.

    Args:
        options: what to do, and how often.
        output_dir: incidents go to its file ``bad_numbers.jsonl``.

    Attributes:
        also: what else goes back in a rollback, by name; has ``state_dict`` and ``load_state_dict``.
        total: incidents so far.
        in_a_row: of these, the latest ones without a good step after or between them.
    """

    def __init__(self, options: BadNumbersOptions, output_dir: str | Path) -> None:
        self.options, self.path = options, Path(output_dir) / FILE
        self.also: dict[str, Any] = {}
        self.total = self.in_a_row = self.overflows_in_a_row = 0
        self._buffers: BuffersBefore | None = None
        self._snapshot: Snapshot | None = None
        self._batches: list[Any] = []

    # What the trainer calls in a step, in this order, on all processes.

    def begin(self) -> None:
        """Before the first forward pass."""
        self._batches = []
        if self._buffers is None:
            self._buffers = BuffersBefore(unwrapped(self.trainer.model))
        self._buffers.keep()

    def saw(self, batch: Any) -> None:
        """The batch of the pass that comes."""
        self._batches.append(batch)

    def losses(self, run: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor] | None:
        """The losses that ``run()`` gives, or None if those of some process are not finite and the step is over.

        ``run`` may raise FloatingPointError, as heads do that look at their scores: that is an incident, too. Only in
        one of several processes, of a model whose batch norms wait for one another, it is not: it is raised as it is.

        Raises:
            BadNumbersError: the incident ends training.
        """
        losses: Mapping[str, Tensor] = {}
        error, bad = "", False
        try:
            losses = run()
            with torch.no_grad():
                bad = not math.isfinite(sum(losses.values()))
        except FloatingPointError as raised:
            if self._waits_in_forward():
                raise
            error, bad = str(raised), True
        if not self._any(bad):
            return losses
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        self._react(Incident("forward" if error else "loss", values, error))
        return None

    def gradients(self) -> bool:
        """Whether the optimizer may take its step: what backward left is finite, or the gradient scaler's business.

        Raises:
            BadNumbersError: the incident ends training.
        """
        norm = self._gradient_norm()
        bad = self._any(not math.isfinite(norm))
        scaler = self._scaler()
        if scaler is not None:
            self.overflows_in_a_row = self.overflows_in_a_row + 1 if bad else 0
            if bad and scaler.get_scale() > _LOWEST_SCALE and self.overflows_in_a_row < self.options.max_in_a_row:
                return True
        if bad:
            kind = "gradient" if scaler is None else "overflow"
            self._react(Incident(kind, grad_norm=norm, bad_gradients=self._bad_gradients()))
            return False
        if self.in_a_row:
            self.in_a_row = 0
            self._count()
        if self.options.action == ROLLBACK:
            self._take_snapshot()
        return True

    # The counters, as a hook's state.

    def before_train(self) -> None:
        self.load_state_dict(comm.all_gather(self.state_dict())[0])  # one that could not read the checkpoint lacks it

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "in_a_row": self.in_a_row, "overflows_in_a_row": self.overflows_in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]
        self.overflows_in_a_row = state["overflows_in_a_row"]

    def _scaler(self) -> Any:
        scaler = getattr(self.trainer, "grad_scaler", None)
        return scaler if scaler is not None and scaler.is_enabled() else None

    def _gradient_norm(self) -> float:
        """Of all parameters together; it is finite only if every gradient is."""
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def _bad_gradients(self) -> list[str]:
        model = unwrapped(self.trainer.model)
        return [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]

    def _any(self, bad: bool) -> bool:
        """Whether it is bad in some process."""
        if comm.get_world_size() == 1:
            return bad
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
        count = torch.tensor([int(bad)], device=device)
        dist.all_reduce(count)
        return bool(count)

    def _waits_in_forward(self) -> bool:
        """Whether other processes may wait for this one within their forward passes."""
        names = (type(module).__name__ for module in self.trainer.model.modules())
        return comm.get_world_size() > 1 and any("SyncBatchNorm" in name for name in names)  # torch's, Detectron2's

    def _count(self) -> None:
        counters = {"bad_numbers/total": self.total, "bad_numbers/in_a_row": self.in_a_row}
        for name, value in counters.items():
            self.trainer.storage.put_scalar(name, value, smoothing_hint=False)

    def _take_snapshot(self) -> None:
        """With weights that have just given finite losses and gradients, before the step changes them."""
        assert self._buffers is not None
        iteration = self.trainer.iter
        if self._snapshot is None:
            self._snapshot = Snapshot(self.trainer, self.also)
        elif iteration - self._snapshot.iteration < self.options.snapshot_period:
            return
        self._snapshot.take(iteration, self._buffers.saved())

    def _react(self, incident: Incident) -> None:
        """Write an incident down, and do what the options say. All processes come here together."""
        assert self._buffers is not None
        trainer, options = self.trainer, self.options
        self.total += 1
        self.in_a_row += 1
        self._buffers.restore()  # running statistics have seen the batch
        limit = self._limit_reached()
        done = self._consequence() if options.action != STOP and limit is None else "Training stops"
        incident = dataclasses.replace(incident, passes=[describe_batch(batch) for batch in self._batches])
        ranks = comm.all_gather(incident)
        stopping = limit is not None or options.action == STOP
        written = not comm.is_main_process() or write_incident(
            self.path,
            ranks,
            iteration=trainer.iter,
            action=STOP if stopping else options.action,
            total=self.total,
            in_a_row=self.in_a_row,
            lr=sorted({float(group["lr"]) for group in trainer.optimizer.param_groups}),
            grad_scale=None if self._scaler() is None else self._scaler().get_scale(),
        )
        where = f"the batch is in {self.path}" if written else f"{self.path} could not be written"
        what = f"Bad numbers at iteration {trainer.iter}: {_describe(ranks)}; {where}. {done}"
        self._count()
        if stopping:
            self._stop(what, limit)
        logger.warning(what)
        trainer.optimizer.zero_grad()
        if isinstance(trainer.model, DistributedDataParallel):  # after an error in forward they may differ in it
            trainer.model.require_forward_param_sync = True
        if options.action == ROLLBACK and self._snapshot is not None:
            self._snapshot.restore(without={"grad_scaler"} if incident.kind == "overflow" else set())
        if incident.kind == "overflow":  # what was not left to the scaler lowers its scale, too
            scaler = self._scaler()
            scaler.update(max(scaler.get_scale() * scaler.get_backoff_factor(), _LOWEST_SCALE))

    def _limit_reached(self) -> str | None:
        options = self.options
        if options.action == STOP:
            return None
        if self.in_a_row >= options.max_in_a_row:
            return f"{self.in_a_row} times in a row (train.bad_numbers.max_in_a_row)"
        if self.total >= options.max_total:
            return f"{self.total} times in all (train.bad_numbers.max_total)"
        return None

    def _consequence(self) -> str:
        if self.options.action == ROLLBACK and self._snapshot is not None:
            return f"Weights, optimizer and averages go back to before iteration {self._snapshot.iteration}"
        return "The step is left out" + (": no good step to go back to" if self.options.action == ROLLBACK else "")

    def _stop(self, what: str, limit: str | None) -> None:
        again = f", {limit}" if limit else ""
        other = "" if limit else ", or go on past such batches with train.bad_numbers.action=skip (or rollback)"
        raise BadNumbersError(
            f"{what}{again}; it did not reach the weights. Look at the batch, lower optimizer.lr, set "
            f"train.clip_grad_norm, try train.amp.enabled=False{other}"
        )


def _describe(ranks: list[Incident]) -> str:
    """What is not finite, of which processes."""
    found = []
    for rank, incident in enumerate(ranks):
        of = f" (process {rank})" if len(ranks) > 1 else ""
        if incident.error:
            found.append(f"{incident.error}{of}")
        elif bad := [f"{name} is {value}" for name, value in incident.losses.items() if not math.isfinite(value)]:
            found.append(f"{', '.join(bad)}{of}")
        elif incident.kind == "loss" and not math.isfinite(sum(incident.losses.values())):
            found.append(f"the sum of the losses is {sum(incident.losses.values())}{of}")
    if found:
        return "; ".join(found)
    first = ranks[0]  # gradients are the same everywhere
    scaled = " (scaled)" if first.kind == "overflow" else ""
    return (
        f"the norm of the gradients{scaled} is {first.grad_norm}, though the losses are finite; not finite are those "
        f"of {list_some(first.bad_gradients, 3) or 'no single parameter'}"
    )
