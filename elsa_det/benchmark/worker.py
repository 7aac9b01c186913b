"""The child process: reads a job from standard input and writes the answer as the last line of standard output."""

from __future__ import annotations

import json
import sys

from .cases import Job
from .measure import run_job


def main() -> None:
    job = Job.from_dict(json.load(sys.stdin))
    answer = run_job(job)
    print("\n" + json.dumps(answer.to_dict()), flush=True)


if __name__ == "__main__":
    main()
