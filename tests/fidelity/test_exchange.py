"""Checkpoints and configs go from Detectron2 to d2lite, from d2lite to Detectron2, and back."""

from __future__ import annotations

import pytest
import torch
from fidelity import exchange, harness

from elsa_det import d2


@pytest.mark.parametrize("writer", [d2.UPSTREAM, d2.LITE])
def test_the_files_of_either_give_the_recorded_outputs(writer):
    recorded = harness.recorded("exchange")["outputs"]
    result = harness.compare(exchange.CASE, harness.flatten(exchange.read(exchange.FOLDER / writer)), recorded)
    assert not result.faults, "\n".join(result.faults[:20])


@pytest.mark.parametrize("writer", [d2.UPSTREAM, d2.LITE])
def test_there_and_back(writer, tmp_path):
    before, after = exchange.there_and_back(exchange.FOLDER / writer, tmp_path)
    assert len(before) > 120
    assert after == before


def test_this_provider_writes_the_recorded_files(tmp_path):
    exchange.write(tmp_path)
    recorded = exchange.FOLDER / d2.PROVIDER
    assert (tmp_path / "config.yaml").read_text() == (recorded / "config.yaml").read_text()
    found, expected = (torch.load(at / "model.pth", weights_only=True) for at in (tmp_path, recorded))
    assert list(found) == list(expected)
    assert list(found["model"]) == list(expected["model"])
    for name, value in expected["model"].items():
        torch.testing.assert_close(found["model"][name], value, rtol=1e-4, atol=1e-5)
