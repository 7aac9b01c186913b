"""What of a config is measured: its model on images, a step of its training, or its data loader."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..config import load_config
from ..d2 import instantiate
from ..errors import UserError

INFERENCE, TRAIN, DATA = "inference", "train", "data"
TASKS = (INFERENCE, TRAIN, DATA)


@dataclass(frozen=True)
class Workload:
    """One config and what is measured of it.

    Args:
        config_file: a LazyConfig file.
        overrides: ``key=value`` changes to it.
        task: "inference", "train" or "data".
        batch: images of a batch; None for what the config says.
        random_size: (height, width) in pixels of made-up images that take the place of the data; None for the data.
        objects: on each of the made-up images.
        load_weights: start from ``train.init_checkpoint`` instead of from the model's initialisation.
        pool: batches of images that inference takes in turn.
        split: "train" or "test", the loader that "data" is about.
        workers: processes of the data loader; None for what the config says.
        distinct: those of ``overrides`` that its name shows; None for all.
    """

    config_file: str
    overrides: tuple[str, ...] = ()
    task: str = INFERENCE
    batch: int | None = None
    random_size: tuple[int, int] | None = None
    objects: int = 8
    load_weights: bool = False
    pool: int = 8
    split: str = "train"
    workers: int | None = None
    distinct: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if self.split not in ("train", "test"):
            raise UserError(f"split must be train or test, got {self.split!r}")
        if self.task == DATA and self.random_size is not None:
            raise UserError("made-up images take the place of the data, so they cannot be given to the task data")
        for name, fewest in (("batch", 1), ("objects", 0), ("pool", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < fewest:
                raise UserError(f"{name} must be at least {fewest}, got {value}")

    @property
    def loader(self) -> str:
        """The loader of the config that it takes images from."""
        return {INFERENCE: "test", TRAIN: "train", DATA: self.split}[self.task]

    @property
    def name(self) -> str:
        """The config's name, with what was changed."""
        shown = self.overrides if self.distinct is None else self.distinct
        changes = [*shown, *([] if self.workers is None else [f"workers={self.workers}"])]
        return " ".join([Path(self.config_file).stem, *changes])

    def load(self) -> Any:
        """The config.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: it lacks what the task needs.
        """
        cfg = load_config(self.config_file, self.overrides)
        needed = ["model", "train", *(["optimizer"] if self.task == TRAIN else [])] if self.task != DATA else []
        needed += [f"dataloader.{self.loader}"] if self.random_size is None else []
        missing = [key for key in needed if OmegaConf.select(cfg, key) is None]
        if missing:
            raise UserError(f"{self.config_file} has no {', '.join(missing)}, which --task {self.task} needs")
        loader = OmegaConf.select(cfg, f"dataloader.{self.loader}")
        if loader is not None:
            if self.batch is not None:
                loader["total_batch_size" if self.loader == "train" else "batch_size"] = self.batch
            if self.workers is not None:
                loader.num_workers = self.workers
        return cfg

    def open_loader(self, cfg: Any) -> Any:
        """The config's loader.

        Raises:
            UserError: the data are not there.
        """
        with self._remedy():
            return instantiate(cfg.dataloader[self.loader])

    def inputs(self, cfg: Any) -> str:
        """In words, what the images are.

        Raises:
            UserError: the data are not there.
        """
        if self.random_size is not None:
            height, width = self.random_size
            return f"MADE-UP images {height}×{width} with {self.objects} objects each, not data"
        names = OmegaConf.select(cfg, f"dataloader.{self.loader}.dataset.names")
        with self._remedy():
            names = instantiate(names) if OmegaConf.is_dict(names) else names
        return str(names) if names is not None else f"dataloader.{self.loader}"

    @contextmanager
    def _remedy(self) -> Iterator[None]:
        """Errors about data that are not there name the config and the way out."""
        try:
            yield
        except (UserError, FileNotFoundError) as error:
            remedy = "" if self.task == DATA else "\nWithout the data, --random 800x1333 measures with made-up images."
            raise UserError(f"{self.config_file}: {error}{remedy}") from error

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Workload:
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, (list, tuple))}
        return cls(**{**values, **lists})

    def with_workers(self, workers: int) -> Workload:
        return replace(self, workers=workers)


def class_count(cfg: Any) -> int:
    """The number of classes of a config's model: the ``num_classes`` that is least deep in it.

    Raises:
        UserError: there is none.
    """
    nodes = deque([OmegaConf.to_container(cfg.model, resolve=True)])
    while nodes:
        node = nodes.popleft()
        if isinstance(node, dict):
            count = instantiate(node.get("num_classes"))  # of own data, a call that reads them
            if isinstance(count, int):
                return count
            nodes.extend(node.values())
        elif isinstance(node, (list, tuple)):
            nodes.extend(node)
    raise UserError("the model of the config says nowhere how many num_classes it has, which made-up images need")
