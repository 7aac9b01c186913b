"""The model zoo: page, data file and configs agree."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

from elsa_det.analysis.model_zoo import config_names, differences, measure, read_zoo, render, update_zoo
from elsa_det.errors import UserError

ROOT = Path(__file__).parents[2]
DATA, PAGE = ROOT / "docs" / "model_zoo.yaml", ROOT / "docs" / "model_zoo.md"


@pytest.fixture(scope="module")
def zoo():
    return read_zoo(DATA)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("make_model_zoo", ROOT / "tools" / "make_model_zoo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_every_config_has_an_entry_and_every_entry_a_config(zoo):
    missing = differences(zoo, config_names())
    assert not missing, "docs/model_zoo.yaml, then tools/make_model_zoo.py --update:\n" + "\n".join(missing)


def test_the_page_is_up_to_date(zoo):
    assert PAGE.read_text(encoding="utf-8") == render(zoo), "run tools/make_model_zoo.py"


MEASURED_HERE = [
    "coco/elsa_b_mrcnn_1x",
    "coco/elsa_t_faster_1x",
    "coco/swin_t_retinanet_1x",
    "lvis/elsa_t_mrcnn_1x",
    "cityscapes/elsa_t_upernet_80k",
    "quickstart/elsa_nano_mrcnn",
    "quickstart/elsa_nano_cascade",
    "quickstart/elsa_nano_upernet",
]


@pytest.mark.parametrize("name", MEASURED_HERE)
def test_stored_figures_are_those_of_the_models(zoo, name):
    """The models with published figures are counted in test_published_figures.py."""
    assert measure(name) == zoo["configs"][name]["measured"]


def test_schedules_of_a_model_cost_the_same(zoo):
    entries = zoo["configs"]
    for name, entry in entries.items():
        if name.endswith("_3x"):
            assert entry["measured"] == entries[name[:-2] + "1x"]["measured"], name
        if name.startswith("examples/"):
            assert entry["measured"] == entries["coco/elsa_t_mrcnn_1x"]["measured"], name


def test_nothing_is_called_trained_but_the_quickstart(zoo):
    """A trained model of the paper's data sets would be news: change the introduction too then."""
    assert "Nothing was trained on COCO" in zoo["introduction"]
    assert {name.split("/")[0] for name, entry in zoo["configs"].items() if entry.get("trained")} == {"quickstart"}


def small_zoo(tmp_path, **entry):
    zoo = {
        "introduction": "All of it.",
        "sections": {"small": {"title": "Small models"}, "none": {"title": "Nothing here"}},
        "paper_models": {"nano": {"parameters": "1M", "multiply_adds": "2G"}},
        "configs": {"quickstart/elsa_nano_mrcnn": {"section": "small", "title": "Nano"} | entry},
        "remarks": ["One remark."],
    }
    path = tmp_path / "zoo.yaml"
    path.write_text("# What this is.\n# Another line.\n" + yaml.safe_dump(zoo, sort_keys=False))
    return path


def test_update_counts_and_keeps_the_comments(tmp_path):
    path = small_zoo(tmp_path)
    assert differences(read_zoo(path), ["quickstart/elsa_nano_mrcnn", "a/new"]) == [
        "a/new: a config without an entry",
        "quickstart/elsa_nano_mrcnn: parameters and multiply-adds have not been counted",
    ]
    assert update_zoo(path) == ["quickstart/elsa_nano_mrcnn"]
    assert update_zoo(path) == []
    assert path.read_text().startswith("# What this is.\n# Another line.\nintroduction:")
    assert read_zoo(path)["configs"]["quickstart/elsa_nano_mrcnn"]["measured"] == measure("quickstart/elsa_nano_mrcnn")


def test_rendered_rows(tmp_path):
    path = small_zoo(tmp_path, paper_model="nano", paper={"mIoU": "45.8"}, trained="yes: 1.0", note="a note")
    page = render(read_zoo(path))
    assert "| config | model | mIoU, paper | parameters, paper / ours | multiply-adds, paper / ours | trained" in page
    assert (
        "| [`quickstart/elsa_nano_mrcnn`](../configs/quickstart/elsa_nano_mrcnn.py) | Nano (a note) | 45.8 | "
        "1M / not counted | 2G / not counted | yes: 1.0 |"
    ) in page
    assert "Nothing here" not in page
    measured = {"parameters": 1_234_000, "multiply_adds": 2_340_000_000}
    page = render(read_zoo(small_zoo(tmp_path, measured=measured)))
    assert "| – / 1.23M | – / 2.3G | no |" in page


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"sektion": 1}, "quickstart/elsa_nano_mrcnn has unknown keys .'sektion'."),
        ({"section": "large"}, "has section 'large'; there are .'small', 'none'."),
        ({"paper_model": "giga"}, "has paper_model 'giga', which paper_models lacks"),
    ],
)
def test_bad_entries(tmp_path, entry, message):
    with pytest.raises(UserError, match=message):
        read_zoo(small_zoo(tmp_path, **entry))


def test_update_of_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="has no entry for coco/elsa_x"):
        update_zoo(small_zoo(tmp_path), ["coco/elsa_x"])
    path = small_zoo(tmp_path)
    path.write_text(path.read_text().replace("quickstart/elsa_nano_mrcnn", "quickstart/gone"))
    with pytest.raises(UserError, match="entries without a config: quickstart/gone"):
        update_zoo(path)


def test_tool_checks_and_writes(tool, tmp_path, capsys):
    assert tool(["--check"]) == 0
    stale = tmp_path / "page.md"
    stale.write_text("old")
    assert tool(["--check", "--page", str(stale)]) == 1
    assert "is not what" in capsys.readouterr().err
    assert stale.read_text() == "old"
    assert tool(["--page", str(stale)]) == 0
    assert stale.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
    assert tool(["--data", str(tmp_path / "none.yaml")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
