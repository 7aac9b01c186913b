"""The configs explained key by key: values as they load, comments as they stand in the files."""

from __future__ import annotations

import ast
import fnmatch
import inspect
import io
import pydoc
import re
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..config import config_root
from ..d2 import LazyConfig

HEADER = "<!-- Made by tools/make_docs.py from the files in configs: change those, not this one. -->\n"
INTRODUCTION = """
# Configs, key by key

Every key of the files in `configs/common`, with its default and the comment that stands beside it there. A config for
training (`configs/coco`, `configs/ade20k`, …) imports some of these files and changes what differs;
[Configs](configs.md) says how. A default such as `${dataset.train.name}` refers to another key and follows it. A name
in italics is the class or function that the keys below it are arguments of.
"""

#: longest default that is shown in full
_SHOWN = 160

Key = tuple[str, ...]


def render_reference(explanations: Mapping[str, str], root: Path | None = None) -> str:
    """The page ``docs/config_reference.md``.

    Args:
        explanations: for keys without a comment, by pattern: ``{"model*.nms_thresh": "IoU …"}``. The first that fits.
        root: the folder of the configs; default: that of the toolkit.
    """
    root = config_root() if root is None else root
    lines = [HEADER, INTRODUCTION.strip("\n"), ""]
    for path in common_files(root):
        lines += _section(path, root, explanations)
    lines += ["## Configs to run", "", "| config | what it is |", "|---|---|"]
    for path in sorted(root.rglob("*.py")):
        if "common" not in path.relative_to(root).parts and path.name != "__init__.py":
            name = path.relative_to(root).as_posix()
            lines.append(f"| [`{name}`](../configs/{name}) | {_cell(_first_paragraph(path))} |")
    return "\n".join(lines) + "\n"


def common_files(root: Path) -> list[Path]:
    """The shared files, those of general interest first; those that hold functions only are among them."""
    common = root / "common"
    first = [
        common / "train.py",
        common / "optim.py",
        common / "data" / "coco.py",
        common / "data" / "semantic_folders.py",
    ]
    rest = sorted(path for path in common.rglob("*.py") if path not in first and path.name != "__init__.py")
    return [*first, *rest]


def read_comments(source: str) -> dict[Key, str]:
    """Comments by the key that they explain: those on the lines above its definition, and those behind it.

    Definitions are ``train = dict(max_iter=…)``, ``model = L(Class)(argument=…)``, ``dataset.train.name = …`` and
    ``model.update(key=…)``, one within another; items of lists are numbered.
    """
    lines = source.splitlines()
    comments = {
        token.start[0]: (token.string.lstrip("#").strip(), not lines[token.start[0] - 1][: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[Key, str] = {}
    taken: set[int] = set()  # a line's comments are of the first that it defines
    for key, first, last in _definitions(ast.parse(source)):
        if first in taken:
            continue
        taken.add(first)
        above: list[str] = []
        row = first - 1
        while row in comments and comments[row][1]:
            above.insert(0, comments[row][0])
            row -= 1
        behind = [comments[row][0] for row in {first, last} if row in comments and not comments[row][1]]
        if text := " ".join([*above, *behind]).replace("fmt: skip", "").strip():
            found.setdefault(key, text)
    return found


def _definitions(module: ast.Module) -> Iterator[tuple[Key, int, int]]:
    """Keys with the first and the last line of their definitions."""
    for node in module.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                key = tuple(ast.unparse(target).split("."))
                yield key, node.lineno, node.lineno
                yield from _within(node.value, key)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            name = ast.unparse(node.value.func)
            if name.endswith(".update"):
                yield from _within(node.value, tuple(name.split(".")[:-1]))


def _within(value: ast.expr, key: Key) -> Iterator[tuple[Key, int, int]]:
    if isinstance(value, ast.Call):
        for keyword in value.keywords:
            if keyword.arg is not None:
                one_line = keyword.value.lineno == keyword.value.end_lineno
                yield (*key, keyword.arg), keyword.lineno, keyword.value.lineno if one_line else keyword.lineno
                yield from _within(keyword.value, (*key, keyword.arg))
    elif isinstance(value, (ast.List, ast.Tuple)):
        for index, item in enumerate(value.elts):
            yield from _within(item, (*key, str(index)))


def flatten(node: Any, key: Key = ()) -> Iterator[tuple[Key, Any, bool]]:
    """Keys, values, and whether the value is the name of what is called, in the order of the config.

    Lists are taken apart where they hold groups.
    """
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, _short_name(node["_target_"]), True
        elif not node and key:
            yield key, {}, False
        for name, value in node.items():
            if name != "_target_":
                yield from flatten(value, (*key, str(name)))
    elif isinstance(node, list) and any(isinstance(item, (dict, list)) and _has_group(item) for item in node):
        for index, item in enumerate(node):
            yield from flatten(item, (*key, str(index)))
    else:
        yield key, node, False


def _has_group(node: Any) -> bool:
    if isinstance(node, list):
        return any(_has_group(item) for item in node)
    return isinstance(node, dict)


def _section(path: Path, root: Path, explanations: Mapping[str, str]) -> list[str]:
    name = path.relative_to(root).as_posix()
    lines = [f"## `{name}`", "", f"[Source](../configs/{name}). {_docstring(path)}", ""]
    source = path.read_text(encoding="utf-8")
    comments = read_comments(source)
    values = load_nodes(path)
    base = _base(path, source)
    inherited = {} if base is None else {key: value for key, *value in flatten(load_nodes(base))}
    documented = dict(_documented_arguments(values))
    shown: set[Key] = set()
    rows, keys = [], set()
    for key, value, is_call in flatten(values):
        keys.add(key)
        if inherited.get(key) == [value, is_call] and key not in comments:
            continue
        for end in range(1, len(key)):  # groups that are no calls have a row of their own if something is said of them
            group = key[:end]
            if group in comments and group not in shown and not _is_call(values, group):
                rows.append(_row(group, "", comments[group]))
            shown.add(group)
        shown.add(key)
        text = comments.get(key) or explanation(key, explanations) or documented.get(key, "")
        rows.append(_row(key, f"*{value}*" if is_call else _code(value), text))
    if base is not None and rows:
        there = base.relative_to(root).as_posix()
        lines += [f"As [`{there}`](#{_slug(there)}), but for:", ""]
    if rows:
        lines += ["| key | default | |", "|---|---|---|", *rows, ""]
    if gone := [key for key in inherited if key not in keys and not any(other[: len(key)] == key for other in keys)]:
        lines += [f"Left out: {', '.join(f'`{_dotted(key)}`' for key in _outermost(gone, keys))}.", ""]
    return lines


def explanation(key: Key, explanations: Mapping[str, str]) -> str:
    """The first explanation whose pattern fits the key; empty if there is none."""
    name = _dotted(key)
    return next((text for pattern, text in explanations.items() if fnmatch.fnmatchcase(name, pattern)), "")


def all_keys(root: Path | None = None) -> set[str]:
    """Every key of the shared files."""
    root = config_root() if root is None else root
    return {_dotted(key) for path in common_files(root) for key, *_ in flatten(load_nodes(path))}


def _documented_arguments(node: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Arguments of our own classes and functions, as their docstrings explain them."""
    if isinstance(node, dict):
        target = node.get("_target_")
        target = pydoc.locate(target) if isinstance(target, str) else target
        if str(getattr(target, "__module__", "")).startswith("elsa_det.") and ".d2lite." not in target.__module__:
            for name, text in _arguments(target).items():
                yield (*key, name), text
        for name, value in node.items():
            yield from _documented_arguments(value, (*key, str(name)))
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from _documented_arguments(item, (*key, str(index)))


def _arguments(target: Any) -> dict[str, str]:
    """The section ``Args:`` of a docstring."""
    documents = [inspect.getdoc(target) or ""]
    if inspect.isclass(target):
        documents.append(inspect.getdoc(target.__init__) or "")
    found: dict[str, str] = {}
    for document in documents:
        section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", document, re.MULTILINE)
        for entry in re.split(r"\n    (?=\S)", "\n" + section[1] if section else ""):
            name, _, text = entry.partition(":")
            if re.fullmatch(r"[\w, ]+", name.strip()):
                found |= {part.strip(): " ".join(text.split()) for part in name.split(",")}
    return found


def _outermost(keys: list[Key], present: set[Key]) -> list[Key]:
    """Keys that are gone, by the outermost group of which nothing is left."""
    left = {key[:end] for key in present for end in range(1, len(key) + 1)}
    found = []
    for key in keys:
        outer = next(key[:end] for end in range(1, len(key) + 1) if key[:end] not in left)
        if outer not in found:
            found.append(outer)
    return found


def load_nodes(path: Path) -> dict[str, Any]:
    """The nodes that a config defines or takes from others, without what it only uses on the way, as in a loop."""
    cfg = OmegaConf.to_container(LazyConfig.load(str(path)), resolve=False)
    assert isinstance(cfg, dict)
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names |= {ast.unparse(target) for target in node.targets}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return {str(key): value for key, value in cfg.items() if key in names and isinstance(value, dict)}


def _base(path: Path, source: str) -> Path | None:
    """The file beside ``path`` whose nodes it changes, None if it is made from nothing."""
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ImportFrom) or node.level != 1 or node.module is None:
            continue
        if any(alias.name in ("dataloader", "dataset", "model") for alias in node.names):
            return path.parent / f"{node.module}.py"
    return None


def _is_call(values: Any, key: Key) -> bool:
    for part in key:
        values = values[int(part)] if isinstance(values, list) else values[part]
    return isinstance(values, dict) and "_target_" in values


def _row(key: Key, default: str, comment: str) -> str:
    return f"| `{_dotted(key)}` | {default} | {_cell(comment)} |"


def _dotted(key: Key) -> str:
    return ".".join(key)


def _code(value: Any) -> str:
    if isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, list):
        text = "[" + ", ".join(_code(item).strip("`") for item in value) + "]"
    elif value is None or isinstance(value, (bool, int)):
        text = "null" if value is None else str(value)
    else:
        text = str(value) or '""'
    if len(text) > _SHOWN:
        text = text[:_SHOWN] + "…"
    return f"`{text}`".replace("|", "\\|")


def _short_name(target: Any) -> str:
    """The same with either provider of Detectron2: their modules differ."""
    if not isinstance(target, str):
        target = getattr(target, "__qualname__", str(target))
    return str(target).rpartition(".")[2]


def _docstring(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    text = re.sub(r"\s*::\n\n((?:    .*\n?)+)", lambda match: f" `{' '.join(match[1].split())}`\n", text)
    return " ".join(text.replace("``", "`").split())


def _first_paragraph(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.replace("``", "`").split("\n\n")[0].split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("``", "`")


def _slug(name: str) -> str:
    return re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-")
