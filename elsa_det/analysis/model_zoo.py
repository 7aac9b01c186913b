"""The model zoo: one data file with the papers' figures, ours and what was trained; the page is made from it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ..config import config_root, get_config
from ..errors import UserError
from .analyze import analyze_config

#: what an entry of ``configs`` may hold
_ENTRY = {"section", "title", "paper_model", "paper", "trained", "note", "measured"}


def config_names() -> list[str]:
    """All configs that can be run, ``coco/elsa_t_mrcnn_1x``, sorted."""
    root = config_root()
    files = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(
        file.with_suffix("").as_posix() for file in files if file.parts[0] != "common" and file.name != "__init__.py"
    )


def read_zoo(path: str | Path) -> dict[str, Any]:
    """The data file: ``sections``, ``paper_models``, ``configs`` and ``remarks``; its comments explain them.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: an entry has unknown keys, or refers to a section or a model of a paper that is not there.
    """
    zoo = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for name, entry in zoo["configs"].items():
        unknown = sorted(set(entry) - _ENTRY)
        if unknown:
            raise UserError(f"{path}: {name} has unknown keys {unknown}; there are {sorted(_ENTRY)}")
        if entry.get("section") not in zoo["sections"]:
            raise UserError(f"{path}: {name} has section {entry.get('section')!r}; there are {list(zoo['sections'])}")
        if entry.get("paper_model") is not None and entry["paper_model"] not in zoo["paper_models"]:
            raise UserError(f"{path}: {name} has paper_model {entry['paper_model']!r}, which paper_models lacks")
    return zoo


def differences(zoo: dict[str, Any], names: Iterable[str]) -> list[str]:
    """What separates the entries from the configs that are there: a line for each."""
    names = set(names)
    lines = [f"{name}: a config without an entry" for name in sorted(names - set(zoo["configs"]))]
    lines += [f"{name}: an entry without a config" for name in zoo["configs"] if name not in names]
    lines += [
        f"{name}: parameters and multiply-adds have not been counted"
        for name, entry in zoo["configs"].items()
        if name in names and not entry.get("measured")
    ]
    return lines


def measure(name: str) -> dict[str, Any]:
    """Parameters and multiply-adds of a config's model, as the data file holds them."""
    analysis = analyze_config(get_config(name), memory=False)
    return {
        "parameters": analysis.parameters,
        "multiply_adds": analysis.multiply_adds,
        "image_size": "x".join(str(side) for side in analysis.image_size),
    }


def update_zoo(path: str | Path, names: Iterable[str] = ()) -> list[str]:
    """Count the models of ``names`` (all entries, if there are none) anew and write them into the data file.

    Returns:
        The entries that changed.

    Raises:
        UserError: a name without an entry, or an entry without a config.
    """
    path = Path(path)
    zoo = read_zoo(path)
    names = list(names) or list(zoo["configs"])
    unknown = [name for name in names if name not in zoo["configs"]]
    if unknown:
        raise UserError(f"{path} has no entry for {', '.join(unknown)}: write one first, without 'measured'")
    gone = sorted(set(names) - set(config_names()))
    if gone:
        raise UserError(f"{path} has entries without a config: {', '.join(gone)}")
    changed = []
    for name in names:
        measured = measure(name)
        if zoo["configs"][name].get("measured") != measured:
            zoo["configs"][name]["measured"] = measured
            changed.append(name)
    if changed:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        header = [line for line in lines if line.startswith("#")]
        body = yaml.safe_dump(zoo, sort_keys=False, allow_unicode=True, width=120)
        path.write_text("".join(header) + body, encoding="utf-8")
    return changed


def render(zoo: dict[str, Any]) -> str:
    """The page, in Markdown."""
    lines = ["<!-- Made by tools/make_model_zoo.py from docs/model_zoo.yaml: change that file, not this one. -->", ""]
    lines += ["# Model zoo", "", zoo["introduction"].strip(), ""]
    for key, section in zoo["sections"].items():
        entries = {name: entry for name, entry in zoo["configs"].items() if entry["section"] == key}
        if not entries:
            continue
        lines += [f"## {section['title']}", ""]
        if section.get("text"):
            lines += [section["text"].strip(), ""]
        results = list(dict.fromkeys(metric for entry in entries.values() for metric in entry.get("paper") or {}))
        header = ["config", "model", *(f"{metric}, paper" for metric in results)]
        header += ["parameters, paper / ours", "multiply-adds, paper / ours", "trained by us"]
        lines += [_row(header), _row(["---"] * 2 + ["---:"] * (len(header) - 3) + ["---"])]
        lines += [_entry_row(name, entry, results, zoo["paper_models"]) for name, entry in entries.items()]
        lines.append("")
    lines += ["## Remarks", "", *(f"* {remark.strip()}" for remark in zoo["remarks"]), ""]
    return "\n".join(lines)


def _entry_row(name: str, entry: dict[str, Any], results: list[str], paper_models: dict[str, Any]) -> str:
    paper, measured = entry.get("paper") or {}, entry.get("measured") or {}
    published = paper_models[entry["paper_model"]] if entry.get("paper_model") else {}
    cells = [f"[`{name}`](../configs/{name}.py)", entry["title"] + (f" ({entry['note']})" if entry.get("note") else "")]
    cells += [str(paper.get(metric, "–")) for metric in results]
    counts = (("parameters", 1e6, "M", 2), ("multiply_adds", 1e9, "G", 1))
    for key, unit, letter, digits in counts:
        ours = f"{measured[key] / unit:.{digits}f}{letter}" if key in measured else "not counted"
        cells.append(f"{published.get(key, '–')} / {ours}")
    return _row([*cells, entry.get("trained") or "no"])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
