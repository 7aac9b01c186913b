"""Every bad input gets its exit code and its message, and the page of messages is what the command says."""

from __future__ import annotations

import pytest
from bad_inputs import CASES, ERROR, PAGE, ask, page

IDS = [f"{case.section}: {case.title}" for case in CASES]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="module")
def answers():
    """By the number of the case, as they come in."""
    return {}


@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_a_bad_input_is_answered(number, root, answers):
    case = CASES[number]
    answer = answers[number] = ask(case, root)
    assert answer.code == (1 if case.outcome == ERROR else 0), answer.printed
    assert not [text for text in case.says if text not in answer.message], answer.message
    assert answer.message.startswith("error: ") == (case.outcome == ERROR)
    assert "Traceback" not in answer.printed


@pytest.mark.skipif(not PAGE.is_file(), reason="the source tree is not here")
def test_the_page_of_messages_is_up_to_date(root, answers):
    made = page([answers.get(number) or ask(case, root) for number, case in enumerate(CASES)])
    assert PAGE.read_text(encoding="utf-8") == made, "run: python tests/bad_inputs.py"
