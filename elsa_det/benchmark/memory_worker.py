"""The child process for the memory of a workload: it comes as JSON on standard input, the answer is the last line."""

from __future__ import annotations

import json
import sys

from ..errors import UserError
from .throughput import memory_of
from .workload import Workload


def main() -> None:
    values = json.load(sys.stdin)
    threads = values.pop("threads")
    try:
        answer = memory_of(Workload.from_dict(values), threads)
    except (UserError, FileNotFoundError) as error:
        sys.exit(" ".join(str(error).split()))
    print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
