"""The soak of kills, for two of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_two_kills_make_no_difference(tmp_path):
    program = Path(__file__).parents[1] / "soak" / "kills.py"
    command = [sys.executable, program, "--kills", "2", "--iterations", "4", "--seed", "1", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "kills.md").read_text().splitlines()
    assert table[0].startswith("2 kills, ")
    assert table[0].endswith(": 0 differences")
    assert sum(row.startswith(("| 1 |", "| 2 |")) for row in table) == 2
    assert any("finished: 0 differences in 4 iterations" in row for row in table)
