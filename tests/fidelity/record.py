"""Record what the real Detectron2 gives in every case, or in those of some subjects.

    ELSA_DET_D2=upstream python tests/fidelity/record.py [SUBJECT ...]
    ELSA_DET_D2=lite python tests/fidelity/record.py

Writes ``tests/golden/d2/*.pt``, and says what changed. With d2lite only the files are written that d2lite gives to
Detectron2 (``exchange/lite``).
"""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from fidelity import exchange, harness, intended

from elsa_det import d2


def main(subjects: list[str]) -> None:
    torch.set_num_threads(1)
    logging.getLogger("detectron2").setLevel(logging.CRITICAL)
    harness.RECORDS.mkdir(parents=True, exist_ok=True)
    if not subjects or "exchange" in subjects:
        exchange.write(exchange.FOLDER / d2.PROVIDER)
    if d2.PROVIDER != d2.UPSTREAM:
        print("The record is of the real Detectron2: only the files that d2lite gives to it were written.")
        return

    runs = {(case.subject, case.name): case.run for case in harness.all_cases()}
    runs |= {("intended", each.name): each.run for each in intended.DIFFERENCES}
    runs["exchange", "outputs"] = lambda: exchange.read(exchange.FOLDER / d2.UPSTREAM)
    cases = {(case.subject, case.name): case for case in harness.all_cases()}
    by_subject: dict[str, dict] = {}
    failed = []
    for (subject, name), run in runs.items():
        if subjects and subject not in subjects:
            continue
        results = by_subject.setdefault(subject, {})
        try:
            results[name] = harness.flatten(run())
            case = cases.get((subject, name), exchange.CASE)
            faults = harness.compare(case, harness.flatten(run()), results[name]).faults
        except Exception:
            traceback.print_exc()
            faults = ["it fails"]
        if faults:
            failed.append(f"{subject}.{name}")
            print(f"{subject}.{name} gives something else the second time, or nothing: {faults[:5]}")
    for subject, results in by_subject.items():
        before = harness.recorded(subject)
        changed = [name for name in results if before.get(name, {}).keys() != results[name].keys()]
        size = harness.store(subject, results)
        print(
            f"{subject}: {len(results)} cases, {size / 1024:.0f} KiB"
            + (f", keys changed: {changed}" if changed else "")
        )
    total = sum(path.stat().st_size for path in harness.RECORDS.rglob("*") if path.is_file())
    print(f"{total / 1024:.0f} KiB in all")
    if failed:
        sys.exit(f"Not to be kept: {failed}")


if __name__ == "__main__":
    main(sys.argv[1:])
