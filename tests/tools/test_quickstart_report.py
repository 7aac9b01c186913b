"""tools/quickstart_report.py from its command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from stub_detector import write_stub

from elsa_det.d2 import DatasetCatalog, LazyConfig, MetadataCatalog
from elsa_det.data.shapes import SetSpec, register_shapes, write_shapes

TOOL = Path(__file__).parents[2] / "tools" / "quickstart_report.py"


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("quickstart_report_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The output folder of a training on a set of two validation images."""
    monkeypatch.setenv("ELSA_DET_TRUST", "stub_detector")  # its config names a class of the tests
    write_shapes(tmp_path / "set", SetSpec(train=1, val=2))
    register_shapes(tmp_path / "set")
    config, checkpoint = write_stub(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    checkpoint.rename(folder / "model_final.pth")
    cfg = LazyConfig.load(str(config))
    cfg.dataloader.test.dataset.names = "quickstart_val"
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    (folder / "metrics.json").write_text(json.dumps({"iteration": 9, "total_loss": 1.0}) + "\n")
    yield folder
    for name in ("quickstart_train", "quickstart_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_both_figures(report, run, capsys):
    assert report(["--run", str(run), "--images", "1"]) == 0
    assert sorted(p.name for p in (run / "figures").iterdir()) == ["predictions.png", "training.png"]
    assert capsys.readouterr().out.split() == [str(run / "figures" / n) for n in ("training.png", "predictions.png")]


def test_mistakes_give_one_message(report, run, tmp_path, capsys):
    assert report(["--run", str(tmp_path / "absent")]) == 1
    assert "absent" in capsys.readouterr().err
    (run / "model_final.pth").unlink()
    assert report(["--run", str(run)]) == 1
    assert "model_final.pth" in capsys.readouterr().err
