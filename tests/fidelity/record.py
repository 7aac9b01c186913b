"""Record what the real Detectron2 gives in every case, or in those of some subjects.

    ELSA_DET_D2=upstream python tests/fidelity/record.py [SUBJECT ...]

Writes ``tests/golden/d2/*.pt``, and says what changed.
"""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from fidelity import harness

from elsa_det import d2


def main(subjects: list[str]) -> None:
    if d2.PROVIDER != d2.UPSTREAM:
        sys.exit("The record is of the real Detectron2: install it, or put it on PYTHONPATH.")
    torch.set_num_threads(1)
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    harness.RECORDS.mkdir(parents=True, exist_ok=True)
    by_subject: dict[str, dict] = {}
    failed = []
    for case in harness.all_cases():
        if subjects and case.subject not in subjects:
            continue
        results = by_subject.setdefault(case.subject, {})
        try:
            results[case.name] = harness.flatten(case.run())
            faults = harness.compare(case, harness.flatten(case.run()), results[case.name]).faults
        except Exception:
            traceback.print_exc()
            faults = ["it fails"]
        if faults:
            failed.append(str(case))
            print(f"{case} gives something else the second time, or nothing: {faults[:5]}")
    for subject, results in by_subject.items():
        before = harness.recorded(subject)
        changed = [name for name in results if before.get(name, {}).keys() != results[name].keys()]
        size = harness.store(subject, results)
        print(
            f"{subject}: {len(results)} cases, {size / 1024:.0f} KiB"
            + (f", keys changed: {changed}" if changed else "")
        )
    total = sum(path.stat().st_size for path in harness.RECORDS.iterdir() if path.is_file())
    print(f"{total / 1024:.0f} KiB in all")
    if failed:
        sys.exit(f"Not to be kept: {failed}")


if __name__ == "__main__":
    main(sys.argv[1:])
