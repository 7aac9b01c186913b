"""The checkpointer of training and prediction: Detectron2's, with files read without running code from them."""

from __future__ import annotations

from typing import Any

from ..d2 import DetectionCheckpointer
from .reading import read_checkpoint


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer reads pickles without restriction; this one reads what :func:`read_checkpoint` does.

    Raises, in ``load`` and ``resume_or_load``:
        CheckpointError: the file is damaged, or holds something else than data.
    """

    def _load_file(self, filename: str) -> dict[str, Any]:
        if str(filename).endswith((".pkl", ".pyth")):
            read_checkpoint(filename)  # refuses what the provider, which knows these formats, would run
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> Any:
        return read_checkpoint(f)
