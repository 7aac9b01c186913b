"""Which batch normalization a job needs: it depends on how many processes train together, and on what."""

from __future__ import annotations

from torch import distributed


def job_batch_norm(*, batch_varies: bool = False) -> str:
    """The name, for Detectron2's ``get_norm``, of batch normalization over all processes of this job.

    Written as a call in a config, it is decided anew wherever the config is used: a model trained on eight GPUs is
    evaluated on one CPU. The parameters, buffers and their names are the same for all answers.

    Args:
        batch_varies: whether the processes have batches of different length (regions of images, say, not images).

    Returns:
        ``"BN"`` in a job of one process. In one of several, ``"SyncBN"`` on CUDA (the NCCL backend), which counts
        every sample alike; elsewhere ``"naiveSyncBN"``, which counts every process alike and does not allow an empty
        batch, or, with ``batch_varies``, ``"naiveSyncBN_N"``, which counts every sample alike.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return "BN"
    if "nccl" in distributed.get_backend():
        return "SyncBN"
    return "naiveSyncBN_N" if batch_varies else "naiveSyncBN"
