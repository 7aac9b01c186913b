"""The doctor says what is there, and finds what is wrong."""

from __future__ import annotations

import pytest
import torch

from elsa_det import doctor
from elsa_det.ops import backends


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_report_of_this_installation(wide, capsys):
    assert doctor.main() == 0
    report = capsys.readouterr().out
    for word in (torch.__version__, "torchvision", "Detectron2", "shifted sum", "float32", "bfloat16", "OpenMP"):
        assert word in report
    assert "The operator is right." in report
    for backend in backends():
        assert backend.detail.split(",")[0] in report
        if backend.reason:
            assert backend.reason.split("(")[0][:40] in report


def test_wrong_numbers_are_found(wide, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_shifted", lambda *t: 1.001 * doctor.elsa_attention_unfold(*t[:4], kernel_size=7))
    assert doctor.main() == 1
    report = capsys.readouterr().out
    assert "1.0e-03, 1.0e-03" in report
    assert "NOT right" in report


def test_failures_are_shown_not_raised(wide, monkeypatch, capsys):
    def broken(*tensors):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(doctor, "_shifted", broken)
    assert doctor.main() == 1
    assert "RuntimeError: no such instruction" in capsys.readouterr().out


def test_a_library_of_another_torch(wide, operator_library, capsys):
    record = {"torch": "2.7.1", "cuda": None, "built": {"cpu": {"openmp": True}}, "not_built": {"cuda": "no nvcc"}}
    operator_library(b"", record)
    assert doctor.main() == 1
    report = capsys.readouterr().out
    assert "built against torch 2.7.1" in report
    assert "--no-build-isolation" in report
    assert "cpu is built, not usable" in report


def test_a_broken_provider_does_not_stop_it(wide, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "elsa_det.d2", None)
    assert doctor.provider().startswith("fails: ")
