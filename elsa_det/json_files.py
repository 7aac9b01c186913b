"""Reading json that anybody may have written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .errors import UserError
from .nearby import looked_for

LARGEST_JSON = 8 * 2**30
"""Bytes. The annotations of the largest public datasets have about half as many, and reading takes several times as
much memory as the file has bytes."""


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a json file.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not json, is nested too deeply, or is larger than :data:`LARGEST_JSON` or the memory.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist {looked_for(path)}")
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise UserError(f"{path} has {size:,} bytes of json, more than the {LARGEST_JSON:,} that are read: divide it")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise UserError(f"{path} is json nested too deeply to be read") from error
    except MemoryError as error:
        raise UserError(f"{path}, {size:,} bytes of json, does not fit into the memory") from error
    except ValueError as error:  # not json, not UTF-8, or a number of thousands of digits
        raise UserError(f"{path} is not json: {error}. Is the download complete?") from error
