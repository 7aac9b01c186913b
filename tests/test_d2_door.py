"""The one door to Detectron2: which provider it opens to, and that both sides offer the same."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOOR = ROOT / "elsa_det" / "d2.py"


def _imports(nodes: list[ast.stmt], root: str) -> dict[str, tuple[str, str]]:
    """For every name a branch binds: the module below ``root`` and the name in it."""
    found = {}
    for node in nodes:
        assert isinstance(node, ast.ImportFrom), ast.unparse(node)
        assert node.level == 0
        assert node.module == root or node.module.startswith(root + "."), node.module
        for alias in node.names:
            found[alias.asname or alias.name] = (node.module.removeprefix(root), alias.name)
    return found


def test_both_branches_offer_the_same_names():
    (branch,) = [node for node in ast.parse(DOOR.read_text()).body if isinstance(node, ast.If)]
    upstream = _imports(branch.body, "detectron2")
    assert upstream == _imports(branch.orelse, "elsa_det.d2lite")
    assert len(upstream) > 70
    assert upstream["LastLevelMaxPool"] == (".modeling.backbone.fpn", "LastLevelMaxPool")


def test_everything_is_exported():
    from elsa_det import d2

    (branch,) = [node for node in ast.parse(DOOR.read_text()).body if isinstance(node, ast.If)]
    for name in _imports(branch.body, "detectron2"):
        assert name in d2.__all__
        assert getattr(d2, name) is not None
    assert d2.PROVIDER in (d2.UPSTREAM, d2.LITE)
    assert {d2.UPSTREAM: "Detectron2 ", d2.LITE: "d2lite "}[d2.PROVIDER] + d2.PROVIDER_VERSION in d2.describe_provider()


# The choice is made before anything heavy is imported, so it is tried in bare processes: no site-packages (-S), only
# the given folder and the repository on the path.
IMPORT = "import elsa_det.d2"
CHOOSE = f"""
import elsa_det
source = open({str(DOOR)!r}).read().partition("if PROVIDER == UPSTREAM:")[0]
space = {{}}
exec(source, space)
print("chose", space["PROVIDER"])
"""


def run(folder: Path, code: str, forced: str | None = None) -> str:
    env = {key: value for key, value in os.environ.items() if key != "ELSA_DET_D2"}
    env["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
    if forced is not None:
        env["ELSA_DET_D2"] = forced
    done = subprocess.run([sys.executable, "-S", "-c", code], env=env, cwd=folder, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode in (0, 1), lines
    return lines[-1]


def fake_detectron2(folder: Path, source: str) -> None:
    (folder / "detectron2").mkdir()
    (folder / "detectron2" / "__init__.py").write_text(source)


@pytest.mark.parametrize("forced", ["Lite2", "detectron2", "1"])
def test_unknown_value(tmp_path, forced):
    message = run(tmp_path, IMPORT, forced)
    assert message.startswith("ImportError: ELSA_DET_D2=")
    assert repr(forced.lower()) in message
    assert "'upstream', 'lite'" in message


def test_choice_without_detectron2(tmp_path):
    assert run(tmp_path, CHOOSE) == "chose lite"
    assert run(tmp_path, CHOOSE, "") == "chose lite"
    assert run(tmp_path, CHOOSE, " LITE ") == "chose lite"
    message = run(tmp_path, IMPORT, "upstream")
    assert message.startswith("ModuleNotFoundError: ELSA_DET_D2=upstream, but detectron2 is not installed")


def test_choice_with_detectron2(tmp_path):
    fake_detectron2(tmp_path, "__version__ = '0.6'")
    assert run(tmp_path, CHOOSE) == "chose upstream"
    assert run(tmp_path, CHOOSE, "upstream") == "chose upstream"
    assert run(tmp_path, CHOOSE, "lite") == "chose lite"
    message = run(tmp_path, "import detectron2\n" + IMPORT, "lite")
    assert message.startswith("ImportError: ELSA_DET_D2=lite, but detectron2 is already imported")


@pytest.mark.parametrize("forced", [None, "upstream"])
def test_folder_without_a_package(tmp_path, forced):
    (tmp_path / "detectron2" / "configs").mkdir(parents=True)
    message = run(tmp_path, IMPORT, forced)
    assert message.startswith("ImportError: 'import detectron2' found only a folder of that name")
    assert str(tmp_path / "detectron2") in message
    assert "ELSA_DET_D2=lite" in message
    assert run(tmp_path, CHOOSE, "lite") == "chose lite"


@pytest.mark.parametrize("forced", [None, "upstream"])
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a_library_it_needs", "ModuleNotFoundError: No module named 'a_library_it_needs'"),
        ("import detectron2._C", "ModuleNotFoundError: No module named 'detectron2._C'"),
        ("raise ImportError('_C.so: undefined symbol')", "ImportError: _C.so: undefined symbol"),
        ("raise OSError('libcudart.so.11')", "OSError: libcudart.so.11"),
    ],
)
def test_broken_install_speaks_for_itself(tmp_path, source, expected, forced):
    fake_detectron2(tmp_path, source)
    assert run(tmp_path, IMPORT, forced) == expected
