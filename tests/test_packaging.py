"""The wheel, unpacked far from the source tree, has everything: modules, configs, and the compiled operator."""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from elsa_det.ops.registration import build_record

ROOT = Path(__file__).parents[1]
missing = [name for name in ("pip", "setuptools", "wheel") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the source tree is not here"),
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
]

SCRIPT = """
import sys, torch
import elsa_det
from elsa_det import get_config
from elsa_det.ops import backends, elsa_attention, elsa_attention_unfold

assert elsa_det.__file__.startswith(sys.argv[1]), elsa_det.__file__
config = get_config("coco/elsa_t_mrcnn_1x.py")
assert config.model.backbone.bottom_up.embed_dim == 96
tensors = [torch.randn(*shape) for shape in ((1, 64, 9, 8), (1, 98, 9, 8), (64, 7, 7), (64, 7, 7))]
out = elsa_attention(*tensors, kernel_size=7)
torch.testing.assert_close(out, elsa_attention_unfold(*tensors, kernel_size=7), rtol=1e-4, atol=1e-4)
print("built:", [b.name for b in backends() if b.built])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the tree, with the object files of this one: what has not changed is not compiled again."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("elsa_det", "configs", "kernels"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json")
        )
    for path in ROOT.iterdir():
        if path.suffix in (".py", ".toml", ".md", ".in") or path.name in ("LICENSE", "NOTICE"):
            shutil.copy2(path, source)
    built = build_record()["built"]
    environment = os.environ | {
        "ELSA_DET_CPU": str(int("cpu" in built)),
        "ELSA_DET_CUDA": str(int("cuda" in built)),
        "ELSA_DET_BUILD_DIR": str(ROOT / "build" / "kernels"),
    }
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(source)
    return next(folder.glob("*.whl"))


def test_the_wheel_serves_every_python_of_this_system(wheel):
    assert "-py3-none-" in wheel.name


def test_the_wheel_holds_the_library_and_the_configs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "elsa_det/configs/coco/elsa_t_mrcnn_1x.py" in names
    assert "elsa_det/ops/_build_info.json" in names
    assert ("elsa_det/ops/_C.so" in names) == ("cpu" in build_record()["built"])
    assert not [name for name in names if name.startswith(("tests/", "kernels/", "configs/", "build"))]


def test_the_wheel_brings_the_commands(wheel):
    archive = zipfile.ZipFile(wheel)
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(archive.read(name).decode())
    commands = dict(parser["console_scripts"])
    assert sorted(commands) == [
        "elsa-det-analyze-model",
        "elsa-det-benchmark",
        "elsa-det-check-data",
        "elsa-det-convert-checkpoint",
        "elsa-det-demo",
        "elsa-det-doctor",
        "elsa-det-train",
        "elsa-det-visualize-data",
        "elsa-det-web-demo",
    ]
    for target in commands.values():
        module, _, function = target.partition(":")
        assert f"{module.replace('.', '/')}.py" in archive.namelist()
        assert callable(getattr(importlib.import_module(module), function))


def test_it_works_without_the_source_tree(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{SCRIPT}", str(site)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "ELSA_DET"))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in build_record()["built"]:
        assert repr(part) in done.stdout


def test_the_source_distribution_holds_the_kernels(tmp_path):
    code = "import setuptools.build_meta as backend, sys; backend.build_sdist(sys.argv[1])"
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "output", "__pycache__", "tests", "*.egg-info", "*.so")
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=source, check=True, capture_output=True)
    archive = next(tmp_path.glob("*.tar.gz"))
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    root = next((tmp_path / "unpacked").iterdir())
    kernels = {p.relative_to(ROOT) for p in (ROOT / "kernels").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert kernels <= {p.relative_to(root) for p in root.rglob("*")}
    assert (root / "configs" / "coco" / "elsa_t_mrcnn_1x.py").is_file()
