"""The fuzzing of tests/soak/fuzz.py, in short, and what it has found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "soak"))

from fuzz import fuzz
from fuzz_targets import TARGETS

from elsa_det.errors import UserError


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_nothing_but_named_errors(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "soak"))
    outcomes, faults = fuzz(name, 200, 7, tmp_path)
    assert faults == []
    assert sum(outcomes.values()) == 200
    refused = sum(count for outcome, count in outcomes.items() if "Error: " in outcome)
    assert 100 < refused <= 200  # the inputs are broken, and most of them say so
    assert len(outcomes) >= 8  # in more than one way


def test_a_fault_is_found_and_kept(tmp_path, monkeypatch):
    import fuzz_targets

    def target(folder):
        def run(data):
            if len(data) > 3:
                raise KeyError("x")
            if not data:
                raise UserError("it's empty")
            return "accepted"

        return fuzz_targets.Target([b"a", b"b"], lambda rng, data: data * rng.randrange(6), run)

    monkeypatch.setitem(fuzz_targets.TARGETS, "made_up", target)
    outcomes, (fault,) = fuzz("made_up", 60, 0, tmp_path)
    assert outcomes.keys() == {"FAULT KeyError", "UserError: it's empty", "accepted"}
    assert "KeyError: 'x'" in fault
    (kept,) = tmp_path.iterdir()
    assert len(kept.read_bytes()) > 3
