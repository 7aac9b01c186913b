"""Compare d2lite with the record of Detectron2 and write the page about it.

    ELSA_DET_D2=lite python tests/fidelity/report.py

Writes ``docs/d2lite_fidelity.md``; ends with an error if a case does not hold.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from fidelity import exchange, harness, intended

from elsa_det import d2

PAGE = Path(__file__).resolve().parents[2] / "docs" / "d2lite_fidelity.md"

HEAD = """# d2lite's fidelity

[d2lite](d2lite.md) stands in for Detectron2, so its numbers have to be Detectron2's. For every name that `elsa_det.d2`
offers there is at least one case whose results were recorded from the real Detectron2 (its main branch of June 2026,
02b5c4e). The tests compare d2lite with the record, and the record with Detectron2 where that is installed. Integers,
texts, orders, shapes and types have to be equal; the tolerances are for floating-point values alone. Of errors it is
compared whether there is one: each provider has words of its own. One more case, `signatures.signatures`, is about all
names: their parameters and defaults.

| | |
|---|---|
| record anew, with Detectron2 | `ELSA_DET_D2=upstream python tests/fidelity/record.py` |
| compare | `pytest tests/fidelity` |
| write this page | `ELSA_DET_D2=lite python tests/fidelity/report.py` |
"""


def pairs() -> list[tuple[str, harness.Case]]:
    """Every name with every case that covers it."""
    return sorted(
        ((name, case) for case in harness.all_cases() for name in case.covers),
        key=lambda pair: (pair[0].lower(), str(pair[1])),
    )


def row(name: str, case: harness.Case) -> str:
    """The columns of the table that do not depend on the machine."""
    return f"| `{name}` | {case} | {case.tolerance} |"


def of_cases() -> list[str]:
    """The second table."""
    lines = ["| case | what is compared | why this tolerance |", "|---|---|---|"]
    return lines + [f"| {case} | {case.what} | {case.why} |" for case in [*harness.all_cases(), exchange.CASE]]


def of_differences() -> list[str]:
    """The third table."""
    lines = ["| name | Detectron2 | d2lite | why |", "|---|---|---|---|"]
    return lines + [
        f"| `{each.covers}` | {each.detectron2} | {each.d2lite} | {each.why} |" for each in intended.DIFFERENCES
    ]


def _number(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"


def main() -> None:
    if d2.PROVIDER != d2.LITE:
        sys.exit("The page is about d2lite: run this with ELSA_DET_D2=lite.")
    torch.set_num_threads(1)
    logging.lastResort = None  # the cases look at what is logged
    warnings.simplefilter("ignore")
    results: dict[str, str] = {}
    values, failed = 0, []
    for case in harness.all_cases():
        expected = harness.recorded(case.subject)[case.name]
        compared = harness.compare(case, harness.flatten(case.run()), expected)
        values += sum(value.numel() if isinstance(value, torch.Tensor) else 1 for value in expected.values())
        outcome = f"{len(compared.faults)} differences" if compared.faults else "holds"
        results[str(case)] = f" {_number(compared.largest)} | {outcome} |"
        failed += [str(case)] if compared.faults else []
    exchanged = []
    for writer in (d2.UPSTREAM, d2.LITE):
        found = harness.flatten(exchange.read(exchange.FOLDER / writer))
        exchanged.append(harness.compare(exchange.CASE, found, harness.recorded("exchange")["outputs"]))
        failed += [f"exchange {writer}"] if exchanged[-1].faults else []
    names = harness.names_to_cover()
    text = [
        HEAD,
        f"{len(names)} names, {len(results)} cases, {values} values. Differences are those on the kind of CPU",
        f"that the record is from, with torch {torch.__version__.partition('+')[0]}; other CPUs sum in other orders.",
        "",
        "## Names",
        "",
        "| name | case | tolerance | largest difference | result |",
        "|---|---|---|---|---|",
        *(row(name, case) + results[str(case)] for name, case in pairs()),
        "",
        "Not compared, because Detectron2 has no such thing: "
        + ", ".join(f"`{n}`" for n in sorted(harness.OF_BOTH))
        + ".",
        "",
        "## Files that go from one to the other",
        "",
        "A checkpoint in the middle of training (model, momentum, schedule, iteration) and its config, written by",
        "either. The other loads them, detects and trains on as the writer itself does, and writes them again with the",
        f"same content. Largest difference: {_number(exchanged[0].largest)} with Detectron2's files,",
        f"{_number(exchanged[1].largest)} with d2lite's; allowed is {exchange.CASE.tolerance}.",
        "",
        "## Intended differences",
        "",
        "Each has a test with either provider.",
        "",
        *of_differences(),
        "",
        "## Cases",
        "",
        *of_cases(),
    ]
    PAGE.write_text("\n".join(text) + "\n")
    print(f"{PAGE.name}: {len(names)} names, {len(results)} cases, {len(failed)} do not hold")
    if failed:
        sys.exit(f"These do not hold: {failed}")


if __name__ == "__main__":
    main()
