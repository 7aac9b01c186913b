"""tools/analyze_model.py from its command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NANO = str(ROOT / "configs" / "quickstart" / "elsa_nano_mrcnn.py")


@pytest.fixture(scope="module")
def analyze():
    spec = importlib.util.spec_from_file_location("analyze_model", ROOT / "tools" / "analyze_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_table_and_json(analyze, tmp_path, capsys):
    file = tmp_path / "deep" / "figures.json"
    assert analyze(["--config-file", NANO, "--image-size", "64x90", "--depth", "2", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    data = json.loads(file.read_text())
    total, parts = data["total"], data["parts"]
    assert data["image_size"] == [64, 96]
    assert data["regions"] == {"boxes": 1000, "masks": 100}
    assert data["training_regions"] == {"boxes": 32, "masks": 16}
    for key in ("parameters", "multiply_adds", "kept_bytes"):
        assert sum(parts[name][key] for name in ("backbone", "proposal_generator", "roi_heads")) == total[key] > 0
    assert total["multiply_adds_by_kind"]["ELSA aggregation"] == total["multiply_adds_by_kind"]["ELSA ghost matrices"]
    # (channels, pixels, blocks) of the three stages with the operator
    taps = sum(49 * c * n * b for c, n, b in ((32, 16 * 24, 1), (64, 8 * 12, 1), (128, 4 * 6, 2)))
    assert total["multiply_adds_by_kind"]["ELSA aggregation"] == taps
    assert f"{total['parameters']:,}" in shown
    assert "bottom_up" in shown
    assert "patch_embed" not in shown
    assert "one image of 64x96 (padded), 1000 proposals, 100 mask regions a mask head" in " ".join(shown.split())


def test_overrides_and_numbers_of_regions(analyze, tmp_path):
    def total(*arguments):
        file = tmp_path / "figures.json"
        command = ["--config-file", NANO, "--image-size", "64", "--no-memory", "--json", str(file), *arguments]
        assert analyze(command) == 0
        return json.loads(file.read_text())["total"]

    plain = total()
    assert plain["kept_bytes"] is None
    assert total("--proposals", "10", "--mask-rois", "1")["multiply_adds"] < plain["multiply_adds"] / 5
    # 6 classes and the background, 4 numbers a class
    assert plain["parameters"] - total("model.roi_heads.num_classes=1")["parameters"] == 5 * 5 * 257


def test_mistakes_are_told_without_a_traceback(analyze, tmp_path, capsys):
    assert analyze(["--config-file", "no/such.py"]) == 1
    assert capsys.readouterr().err.startswith("error: config file no/such.py does not exist")
    (tmp_path / "empty.py").write_text("a = dict(b=1)\n")
    assert analyze(["--config-file", str(tmp_path / "empty.py")]) == 1
    assert capsys.readouterr().err == "error: the config has no model: its keys are a\n"
    for arguments in (["--image-size", "0x3"], ["--proposals", "none"]):
        with pytest.raises(SystemExit, match="2"):
            analyze(["--config-file", NANO, *arguments])
        assert arguments[1] in capsys.readouterr().err
