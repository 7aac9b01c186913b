"""d2lite's numbers are Detectron2's: every case with the record of the real Detectron2 (with it: the record holds)."""

from __future__ import annotations

import functools

import pytest
import torch
from fidelity import harness, intended, report

from elsa_det import d2

recorded = functools.cache(harness.recorded)


@pytest.mark.parametrize("case", harness.all_cases(), ids=str)
def test_as_detectron2(case):
    expected = recorded(case.subject).get(case.name)
    assert expected, f"{case} is not recorded: run tests/fidelity/record.py where Detectron2 is installed"
    result = harness.compare(case, harness.flatten(case.run()), expected)
    assert not result.faults, f"{len(result.faults)} differences:\n" + "\n".join(result.faults[:20])


@pytest.mark.parametrize("difference", intended.DIFFERENCES, ids=str)
def test_differs_as_intended(difference):
    theirs, ours = recorded("intended")[difference.name], harness.flatten(difference.here)
    assert theirs != ours
    assert harness.flatten(difference.run()) == (theirs if d2.PROVIDER == d2.UPSTREAM else ours)


def test_every_name_has_a_case():
    covered = {name for case in harness.all_cases() for name in case.covers}
    assert covered - harness.names_to_cover() == set()
    assert harness.names_to_cover() - covered == set()


def test_no_record_without_a_case():
    cases = {(case.subject, case.name) for case in harness.all_cases()}
    cases |= {("intended", each.name) for each in intended.DIFFERENCES} | {("exchange", "outputs")}
    files = {path.stem for path in harness.RECORDS.glob("*.pt")}
    assert {(subject, name) for subject in files for name in recorded(subject)} == cases


def test_the_page_has_every_name_case_and_difference():
    page = report.PAGE.read_text().splitlines()
    expected = [report.row(name, case) for name, case in report.pairs()]
    assert [line for line in expected if not any(found.startswith(line) for found in page)] == []
    assert [line for line in [*report.of_cases(), *report.of_differences()] if line not in page] == []
    number = len(expected) + len(report.of_cases()) + len(report.of_differences())
    assert len([line for line in page if line.startswith("|")]) == number + 2 + 5  # and heads
    assert all(line.endswith("| holds |") for line in page if any(line.startswith(row) for row in expected))


def test_the_comparison_sees_differences():
    case = harness.Case("subject", "name", dict, (), "", rtol=0.0, atol=1e-3, why="")
    record = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1, 2]), "c": "text", "d": 0.5, "e": [1, 2]}
    assert harness.compare(case, dict(record, a=torch.tensor([1.0, 2.0005]), d=0.5004), record).faults == []
    for change in (
        {"a": torch.tensor([1.0, 2.002])},
        {"a": torch.tensor([1.0, float("nan")])},
        {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"b": torch.tensor([1, 3])},
        {"c": "other"},
        {"d": 0.502},
        {"e": [2, 1]},
        {"f": 1},
    ):
        assert len(harness.compare(case, record | change, record).faults) == 1, change
