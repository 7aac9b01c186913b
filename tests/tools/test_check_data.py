"""tools/check_data.py and tools/visualize_data.py: what they print, draw and answer."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import pytest

from elsa_det.data.shapes import SetSpec, write_shapes
from elsa_det.engine.contact_sheet import contact_sheet, evenly

TOOLS = Path(__file__).parents[2] / "tools"


def tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, SetSpec(train=6, val=2))
    return root


def paths(root):
    return ["--json", str(root / "annotations/instances_train.json"), "--images", str(root / "train")]


def test_good_data_ends_with_0_and_a_contact_sheet(data, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert tool("check_data").main([*paths(data), "--contact-sheet", str(sheet), "--count", "5"]) == 0
    out = capsys.readouterr().out
    content = json.loads((data / "annotations/instances_train.json").read_text())
    assert f"│ objects                │ {len(content['annotations'])} " in out
    assert "no errors" in out
    # five pictures of 360 pixels in columns of four, 22 pixels of writing under each, 6 between
    assert cv2.imread(str(sheet)).shape == (2 * (360 + 22 + 6) + 6, 4 * (360 + 6) + 6, 3)


def test_faulty_data_ends_with_1(data, tmp_path, capsys):
    content = json.loads((data / "annotations/instances_train.json").read_text())
    content["annotations"][0]["category_id"] = 77
    content["annotations"][1]["bbox"][2] = 0
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(content))
    assert tool("check_data").main(["--json", str(bad), "--images", str(data / "train")]) == 1
    out = capsys.readouterr().out
    assert "category_id 77 is not among the categories" in out
    assert "zero-area box" in out
    assert "1 errors" in out


def test_the_data_of_a_config(data, capsys):
    config = str(TOOLS.parent / "configs/quickstart/elsa_nano_mrcnn.py")
    opts = [
        f"dataset.train.json_file={data}/annotations/instances_train.json",
        f"dataset.train.image_root={data}/train",
        f"dataset.test.json_file={data}/annotations/instances_val.json",
        f"dataset.test.image_root={data}/val",
    ]
    assert tool("check_data").main(["--config-file", config, "--look", "names", *opts]) == 0
    out = capsys.readouterr().out
    assert "instances_train.json" in out
    assert "instances_val.json" in out


def test_samples_after_augmentation_are_drawn(data, tmp_path, capsys):
    picture = tmp_path / "samples.png"
    args = [
        *("--config-file", str(TOOLS.parent / "configs/quickstart/elsa_nano_mrcnn.py")),
        *("--output", str(picture), "--count", "2", "--repeats", "2"),
        f"dataset.train.json_file={data}/annotations/instances_train.json",
        f"dataset.train.image_root={data}/train",
    ]
    assert tool("visualize_data").main(args) == 0
    assert capsys.readouterr().out == f"4 samples drawn to {picture}\n"
    first = cv2.imread(str(picture))
    assert first.shape == (360 + 22 + 12, 4 * 366 + 6, 3)
    tool("visualize_data").main(args)
    assert (cv2.imread(str(picture)) == first).all()  # the seed fixes the augmentation


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--json", "a.json"], "error: give --json and --images, or --config-file"),
        (["--json", "gone.json", "--images", "."], "error: annotations gone.json do not exist"),
        (["--json", "a.json", "--images", "b", "x=1"], "error: 'x=1' is not understood"),
    ],
)
def test_mistakes_end_with_1_and_one_line(args, message, capsys):
    assert tool("check_data").main(args) == 1
    err = capsys.readouterr().err.strip()
    assert err.startswith(message)
    assert "\n" not in err


def test_contact_sheets_need_pictures():
    assert evenly(3, 10) == [1, 5, 8]
    assert evenly(9, 2) == [0, 1]
    with pytest.raises(ValueError, match="nothing to lay out: 0 pictures"):
        contact_sheet([])
