"""How commands end."""

from __future__ import annotations

import errno
import logging

import pytest

from elsa_det.checkpoint import CheckpointError
from elsa_det.commands.entry import command
from elsa_det.d2 import TrainerBase
from elsa_det.engine.user_errors import show_user_errors_briefly, without_traceback
from elsa_det.errors import UserError


def ending_with(error):
    @command
    def main(argv=None):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("a=1: use 2"), "a=1: use 2"),
        (CheckpointError("x.pth is none"), "x.pth is none"),
        (FileNotFoundError("x does not exist"), "x does not exist"),
        (
            PermissionError(errno.EACCES, "Permission denied", "run"),
            "run: Permission denied; check its permissions",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "m.pth"), "m.pth: No space left on device; make room there"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room there"),
        (OSError(errno.EEXIST, "File exists", "a.jpg"), "a.jpg: File exists; something else has that name, or"),
    ],
)
def test_user_errors_end_with_1_and_a_message(error, message, capsys):
    assert ending_with(error)() == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("error", [ValueError("of ours"), OSError(errno.EIO, "I/O error"), OSError("no number")])
def test_faults_of_the_program_keep_their_traceback(error):
    with pytest.raises(type(error), match=str(error.args[-1])):
        ending_with(error)()


def test_the_keyboard_ends_with_130(capsys):
    assert ending_with(KeyboardInterrupt())() == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_main_returns_is_the_exit_code():
    assert [command(lambda argv, code=code: code)() for code in (0, None, 3)] == [0, 0, 3]


def test_a_message_comes_out_of_a_worker_alone():
    wrapped = (
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\nOSError: cut\n\nThe above exception was the direct cause of the following:\n\n'
        "elsa_det.errors.UserError: image a.jpg cannot be used.\nReplace it\n"
    )
    assert without_traceback(wrapped) == "image a.jpg cannot be used.\nReplace it"
    assert without_traceback("Caught in between") == "Caught in between"


def test_the_log_of_the_trainer_leaves_the_traceback_of_user_errors_out(caplog):
    show_user_errors_briefly()
    log = logging.getLogger(TrainerBase.__module__)
    for error in (UserError("a=1: use 2"), ZeroDivisionError("ours")):
        try:
            raise error
        except Exception:
            with caplog.at_level(logging.ERROR):
                log.addHandler(caplog.handler)
                log.exception("Exception during training:")
                log.removeHandler(caplog.handler)
    brief, *_, whole = caplog.records
    assert (brief.getMessage(), brief.exc_info) == ("Exception during training: a=1: use 2", None)
    assert whole.exc_info[0] is ZeroDivisionError
