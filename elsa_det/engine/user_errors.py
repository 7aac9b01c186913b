"""Which errors the user can mend, and what is told of them."""

from __future__ import annotations

import errno
import logging
import re

from ..d2 import TrainerBase
from ..errors import UserError

#: what a disk, its permissions and its folders say, rather than a fault of the program, and what to do
_ROOM, _RIGHTS, _NAME = "make room there", "check its permissions", "something else has that name"
_DISK = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EEXIST: _NAME,
    errno.EISDIR: _NAME,
    errno.ENOTDIR: _NAME,
}
_WRAPPED = re.compile(r"^(?:[\w.]+\.)?(?:UserError|CheckpointError|FileNotFoundError): ", re.MULTILINE)


def describe(error: BaseException) -> str | None:
    """What there is to tell of an error that the user can mend; None if it is a fault of the program."""
    if isinstance(error, (UserError, FileNotFoundError)):
        return without_traceback(str(error))
    if isinstance(error, OSError) and error.errno in _DISK:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; {_DISK[error.errno]}, or choose another place"
    return None


def without_traceback(message: str) -> str:
    """The message alone, out of what a loader's worker process wraps around it."""
    if not message.startswith("Caught "):
        return message
    starts = [match.end() for match in _WRAPPED.finditer(message)]
    return message[starts[-1] :].strip() if starts else message


class _BriefUserErrors(logging.Filter):
    """Takes the traceback of a user error out of a record; the message follows at the end of the command."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and (message := describe(error)) is not None:
            record.msg, record.args = f"{record.getMessage()} {message}", ()
            record.exc_info = record.exc_text = None
        return True


_FILTER = _BriefUserErrors()


def show_user_errors_briefly() -> None:
    """Let the trainer, which logs whatever ends it with a traceback, leave that of user errors out."""
    logging.getLogger(TrainerBase.__module__).addFilter(_FILTER)
