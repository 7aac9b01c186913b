"""Imports flow one way, d2lite stands alone, and detectron2 is imported in one file only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "elsa_det"
#: what each layer may import
LOWER = {
    "ops": set(),
    "layers": {"ops"},
    "modeling": {"ops", "layers", "d2"},
    "data": {"ops", "layers", "modeling", "d2"},
    "evaluation": {"ops", "layers", "modeling", "data", "d2"},
    "benchmark": {"ops", "layers", "modeling", "checkpoint", "config", "d2"},
    "analysis": {"ops", "layers", "modeling", "config", "d2"},
    "checkpoint": {"ops", "layers", "modeling", "d2"},
    "engine": {
        *("ops", "layers", "modeling", "data", "evaluation", "checkpoint", "analysis"),
        *("config", "config_targets", "d2"),
    },
    "commands": {"ops", "data", "checkpoint", "analysis", "benchmark", "engine", "config", "d2"},
}
#: what every layer may import
EVERYWHERE = ("__version__", "errors", "images", "json_files", "nearby")


def imports(path: Path) -> list[str]:
    """Absolute dotted names of everything a module imports."""
    package = ["elsa_det", *path.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            found += [".".join([*module, alias.name]) for alias in node.names]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("layer", sorted(LOWER))
def test_imports_flow_one_way(layer):
    for path in (PACKAGE / layer).rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "elsa_det" and len(parts) > 1 and parts[1] not in (*EVERYWHERE, layer):
                assert parts[1] in LOWER[layer], f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "commands").glob("*.py")), ids=lambda path: path.stem)
def test_tools_only_call_commands(path):
    """A command has a tool of its name, in which nothing is done."""
    if path.stem in ("__init__", "entry"):
        return
    tool = PACKAGE.parent / "tools" / ("lazyconfig_train_net.py" if path.stem == "train" else path.name)
    tree = ast.parse(tool.read_text())
    assert [type(node) for node in tree.body[1:]] == [ast.ImportFrom, ast.Import, ast.ImportFrom, ast.Assign, ast.If]
    assert f"elsa_det.commands.{path.stem}" in {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}


def test_nothing_imports_the_commands():
    for path in FILES:
        if "commands" not in path.parts:
            assert not [name for name in imports(path) if name.startswith("elsa_det.commands")], path


def test_d2lite_stands_alone():
    for path in (PACKAGE / "d2lite").rglob("*.py"):
        for name in imports(path):
            assert not name.startswith("elsa_det.") or name.startswith("elsa_det.d2lite"), f"{path}: {name}"


def test_only_d2_imports_detectron2_and_d2lite():
    for path in FILES:
        if path.name == "d2.py":
            continue
        names = imports(path)
        assert not [n for n in names if n.split(".")[0] == "detectron2"], path
        if "d2lite" not in path.parts:
            assert not [n for n in names if n.startswith("elsa_det.d2lite")], path


@pytest.mark.parametrize("folder", ["configs", "tools", "datasets"])
def test_configs_and_tools_go_through_the_door(folder):
    for path in (PACKAGE.parent / folder).rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
        names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level]
        assert not [n for n in names if n.split(".")[0] == "detectron2" or ".d2lite" in n], path
        if folder == "configs":
            assert not [n for n in ast.walk(tree) if isinstance(n, ast.Lambda)], (
                f"{path}: lambdas do not survive saving"
            )


def test_files_stay_small():
    long = {str(p.relative_to(PACKAGE)): n for p in FILES if (n := len(p.read_text().splitlines())) > 550}
    assert long == {}
