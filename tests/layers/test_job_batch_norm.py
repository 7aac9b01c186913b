"""Batch normalization by the kind of job: one process, several on CUDA, several on the CPU."""

from __future__ import annotations

import pytest
from torch import distributed, nn

from elsa_det.d2 import get_norm
from elsa_det.layers import job_batch_norm

JOBS = [
    # processes, backend, norm, norm where the batches differ
    (None, None, "BN", "BN"),
    (1, "nccl", "BN", "BN"),
    (8, "nccl", "SyncBN", "SyncBN"),
    (8, "cpu:gloo,cuda:nccl", "SyncBN", "SyncBN"),
    (2, "gloo", "naiveSyncBN", "naiveSyncBN_N"),
]


@pytest.mark.parametrize(("processes", "backend", "same", "varying"), JOBS)
def test_norm_goes_by_the_job(monkeypatch, processes, backend, same, varying):
    monkeypatch.setattr(distributed, "is_initialized", lambda: processes is not None)
    monkeypatch.setattr(distributed, "get_world_size", lambda: processes)
    monkeypatch.setattr(distributed, "get_backend", lambda: backend)
    assert job_batch_norm() == same
    assert job_batch_norm(batch_varies=True) == varying


@pytest.mark.parametrize("name", ["SyncBN", "naiveSyncBN", "naiveSyncBN_N"])
def test_weights_fit_all_jobs(name):
    norm, plain = get_norm(name, 3), nn.BatchNorm2d(3)
    assert {k: v.shape for k, v in norm.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert (norm.eps, norm.momentum) == (plain.eps, plain.momentum)
