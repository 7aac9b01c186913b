"""tools/demo.py from its command line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stub_detector import write_stub

from elsa_det.engine.demo import find_images

TOOL = Path(__file__).parents[2] / "tools" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the stub's files and some images; the working directory."""
    monkeypatch.chdir(tmp_path)
    write_stub(tmp_path)
    for name in ("a.jpg", "more/a.jpg", "more/b.PNG", "more/c.bmp"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (90, 90, 90)).save(name)
    Path("more/notes.txt").write_text("no image")
    return tmp_path


def arguments(*inputs, output="out"):
    return ["--config-file", "stub_config.py", "--checkpoint", "model.pth", "--input", *inputs, "--output", output]


def test_files_folders_and_patterns(demo, place, capsys):
    assert demo(arguments("a.jpg", "more", "m*/*.jpg")) == 0
    assert sorted(p.name for p in (place / "out").iterdir()) == ["a.jpg", "a_2.jpg", "b.PNG", "c.png"]
    assert "4 images written to out with 4 instances." in capsys.readouterr().out


def test_only_confident_instances_are_drawn(demo, place):
    """Of the 40×30 image, enlarged 16 times, the dog takes the left half and the cat the top."""
    assert demo(arguments("more/b.PNG")) == 0
    one = np.asarray(Image.open("out/b.PNG")).astype(int)
    assert one.shape == (480, 640, 3)
    assert (one[300:400, 100:200] != 90).any(axis=2).all()
    assert (one[60:140, 400:560] == 90).all()
    assert demo(arguments("more/b.PNG", output="two") + ["--confidence-threshold", "0.2"]) == 0
    two = np.asarray(Image.open("two/b.PNG")).astype(int)
    assert (two[60:140, 400:560] != 90).any(axis=2).all()
    assert (two[340:400, 400:560] == 90).all()


def test_checkpoint_of_the_config(demo, place):
    options = ["--config-file", "stub_config.py", "--input", "a.jpg", "--output", "out"]
    assert demo([*options, "train.init_checkpoint=model.pth"]) == 0


def test_what_cannot_be_read_is_reported_and_the_rest_is_done(demo, place, capsys):
    Path("bad.jpg").write_bytes(b"no image")
    assert demo(arguments("bad.jpg", "absent.png", "*.gif", "a.jpg")) == 1
    assert [p.name for p in (place / "out").iterdir()] == ["a.jpg"]
    error = capsys.readouterr().err
    assert "3 inputs could not be done" in error
    assert "'bad.jpg' cannot be read" in error
    assert "there is no absent.png" in error
    assert "pattern *.gif matches no file" in error


def test_inputs_are_not_replaced(demo, place, capsys):
    before = Path("a.jpg").read_bytes()
    assert demo(arguments("a.jpg", output=".")) == 1
    assert Path("a.jpg").read_bytes() == before
    assert "would be replaced" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--config-file", "absent.py"], "absent.py"),
        (["--checkpoint", "absent.pth"], "absent.pth"),
        (["--confidence-threshold", "50"], "got 50"),
        (["--output", "a.jpg"], "a.jpg"),
        (["model.num_classes=3"], "does not fit"),
    ],
)
def test_mistakes_give_one_message_and_no_traceback(demo, place, capsys, changed, message):
    assert demo(arguments("a.jpg") + changed) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_find_images(place):
    Path("odd[1].jpg").write_bytes(b"")
    Path("empty").mkdir()
    assert find_images(["odd[1].jpg", "more", "more/a.jpg"]) == (
        [Path("odd[1].jpg"), Path("more/a.jpg"), Path("more/b.PNG"), Path("more/c.bmp")],
        [],
    )
    images, problems = find_images(["empty", "a=b"])
    assert images == []
    assert "empty has no images" in problems[0]
    assert "key=value" in problems[1]
