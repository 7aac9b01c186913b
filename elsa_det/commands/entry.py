"""How every command ends: with an exit code, and for what the user can mend one message and no traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from ..engine.user_errors import describe, show_user_errors_briefly

INTERRUPTED = 130


def command(main: Callable[[list[str] | None], int | None]) -> Callable[[list[str] | None], int]:
    """Makes of ``main(argv)`` one that returns the exit code and prints user errors as ``error: …``.

    What :func:`~elsa_det.engine.user_errors.describe` knows, such as a file that is not there, gives 1 and a message on
    standard error; Ctrl-C gives 130 and a line. Anything else is a fault of the program, and keeps its traceback.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        show_user_errors_briefly()
        try:
            return main(argv) or 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            message = describe(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            return 1

    return run
