"""Checkpoints of detection models, model-zoo files included."""

from __future__ import annotations

import logging
import os
import pickle
from typing import Any
from urllib.parse import parse_qs

import torch
import torch.distributed as dist
from fvcore.common.checkpoint import Checkpointer, _IncompatibleKeys
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..utils import comm
from ..utils.file_io import PathManager
from .matching import align_state_dict
from .pickle_arrays import load_arrays

logger = logging.getLogger(__name__)


class DetectionCheckpointer(Checkpointer):
    """fvcore's checkpointer, which also reads Detectron2's ``.pkl`` files, and never runs code from a file.

    * Files are read with ``weights_only=True``, ``.pkl`` files for arrays and plain containers only.
    * ``path?matching_heuristics=True`` (a ``.pkl`` says it itself) renames tensors by the ends of their names.
    * Only the main process writes. With a DistributedDataParallel model, a file that only the main process can read
      is loaded there, and the weights are sent to the others. All processes call :meth:`load` together then.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        """
        Args:
            model: the model, wrapped for distributed training or not.
            save_dir: where :meth:`save` writes and :meth:`resume_or_load` looks.
            save_to_disk: whether this process writes; default: the main process does.
            checkpointables: anything with ``state_dict()`` and ``load_state_dict()``, saved under its keyword.
        """
        super().__init__(model, save_dir, save_to_disk=comm.is_main_process() if save_to_disk is None else save_to_disk)
        for name, checkpointable in checkpointables.items():
            self.add_checkpointable(name, checkpointable)
        self.path_manager = PathManager
        self._is_distributed = isinstance(model, DistributedDataParallel)
        self._match_by_suffix = False

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model and the checkpointables from a file or URL.

        Args:
            path: where, optionally with ``?matching_heuristics=True``. Empty: nothing is loaded.
            checkpointables: which of them to load; default: all that the file has.

        Returns:
            What else the file holds, such as the iteration. Empty on a process that could not read the file.

        Raises:
            FileNotFoundError: there is no such file (on the main process).
            ValueError: the file holds more than tensors and plain containers, or the query is not understood.
        """
        if not path:
            return super().load(path, checkpointables)
        path, _, query = path.partition("?")
        self._match_by_suffix = _parse_query(query, path)
        local = self._find(path)
        if not self._is_distributed:
            if local is None:
                raise FileNotFoundError(f"There is no checkpoint '{path}' (working directory: {os.getcwd()}).")
            return super().load(local, checkpointables)
        found = comm.all_gather(local is not None)
        if not found[0]:
            raise FileNotFoundError(f"There is no checkpoint '{path}' on the main process' machine.")
        rest = super().load(local, checkpointables) if local is not None else {}
        if not all(found):
            logger.warning(
                "%d of %d processes cannot read checkpoint %s: they get the main process' weights, but neither the "
                "optimizer's state nor the iteration. Training may not resume exactly.",
                found.count(False),
                len(found),
                path,
            )
            for tensor in self.model.state_dict().values():
                dist.broadcast(tensor, src=0)
        return rest

    def _find(self, path: str) -> str | None:
        try:
            local = self.path_manager.get_local_path(path)
        except FileNotFoundError:
            return None
        return local if os.path.isfile(local) else None

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            with self.path_manager.open(filename, "rb") as file:
                loaded = load_arrays(file, filename)
            if not isinstance(loaded, dict) or "model" not in loaded or "__author__" not in loaded:
                loaded = {"__author__": "Caffe2"}  # nothing else leaves them out
            if loaded["__author__"] == "Caffe2":
                raise ValueError(
                    f"Checkpoint {filename} has Caffe2's names (Detectron 1, and its ImageNet ResNets), which d2lite "
                    "does not know. The real Detectron2 reads it: install it, or convert the file with it."
                )
            self.logger.info("Reading a file from '%s'", loaded["__author__"])
            return loaded
        loaded = self._torch_load(filename)
        loaded = loaded if "model" in loaded else {"model": loaded}
        return {**loaded, "matching_heuristics": True} if self._match_by_suffix else loaded

    def _torch_load(self, f: str) -> dict[str, Any]:
        try:
            return torch.load(f, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"Cannot read checkpoint {f} safely: it is damaged, or holds more than tensors and plain containers. "
                "If you trust the file, read it with the program that wrote it and save {'model': state_dict} with "
                f"torch.save. PyTorch says: {error}"
            ) from error

    def _load_model(self, checkpoint: Any) -> _IncompatibleKeys:
        if checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = align_state_dict(self.model.state_dict(), checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        # Older files lack the pixel statistics, which the config sets anyway, and have anchors, which are computed.
        set_anyway = {"pixel_mean", "pixel_std"} & {name for name, _ in self.model.named_buffers(recurse=False)}
        missing = [name for name in incompatible.missing_keys if name not in set_anyway]
        unexpected = [name for name in incompatible.unexpected_keys if "anchor_generator.cell_anchors" not in name]
        return incompatible._replace(missing_keys=missing, unexpected_keys=unexpected)


def _parse_query(query: str, path: str) -> bool:
    options = parse_qs(query, keep_blank_values=True)
    value = options.pop("matching_heuristics", ["False"])
    if options or value not in (["True"], ["False"]):
        raise ValueError(f"'?{query}' after checkpoint '{path}' is not understood: only matching_heuristics=True is.")
    return value == ["True"]
