"""tools/demo.py from its command line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stub_detector import write_stub

from elsa_det.engine.demo_inputs import find_inputs
from elsa_det.engine.demo_video import VideoFile

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


def test_find_inputs(place):
    Path("odd[1].jpg").write_bytes(b"")
    Path("more/clip.MP4").write_bytes(b"")
    Path("empty").mkdir()
    found = find_inputs(["odd[1].jpg", "more", "more/a.jpg", "more/*.MP4"])
    assert found.images == [Path("odd[1].jpg"), Path("more/a.jpg"), Path("more/b.PNG"), Path("more/c.bmp")]
    assert found.videos == [Path("more/clip.MP4")]
    assert found.problems == []
    found = find_inputs(["empty", "a=b"])
    assert (found.images, found.videos) == ([], [])
    assert "empty has no images and no videos" in found.problems[0]
    assert "key=value" in found.problems[1]


class TestVideosAndCameras:
    @pytest.fixture
    def clip(self, place):
        video = VideoFile("clip.mp4", 10, (320, 240))
        for level in (50, 90, 130):
            video.write(np.full((240, 320, 3), level, dtype=np.uint8))
        video.close()

    def test_everything_at_once(self, demo, clip, place, capsys):
        extra = ["--json", "found.json", "--coco-json", "coco.json", "--crops", "crops", "--batch-size", "2"]
        assert demo(arguments("a.jpg", "clip.mp4") + extra) == 0
        told = capsys.readouterr()
        assert told.out.splitlines() == [
            "1 images and 3 frames written to out with 4 instances.",
            "out/clip.mp4: 3 frames, 320×240, 10 frames/s, mp4v",
            "crops: 4 instances cut out",
            "found.json: 4 images",
            "coco.json: 4 detections in 4 images",
            "  category ids are class indices + 1, for no dataset tells them",
            "  image ids are running numbers from 1, see coco_images.json",
        ]
        assert "3/3" in told.err  # the bar
        assert sorted(p.name for p in Path("out").iterdir()) == ["a.jpg", "clip.mp4"]

    def test_without_an_output_folder(self, demo, clip, capsys):
        given = ["--config-file", "stub_config.py", "--checkpoint", "model.pth", "--input", "a.jpg"]
        assert demo([*given, "--json", "found.json", "--classes", "cat", "--confidence-threshold", "0.1"]) == 0
        assert "1 images with 1 instances." in capsys.readouterr().out
        assert demo(given) == 1
        assert "error: Nothing would be kept" in capsys.readouterr().err

    def test_max_frames(self, demo, clip, capsys):
        assert demo(arguments("clip.mp4") + ["--max-frames", "2"]) == 0
        assert "2 frames written to out" in capsys.readouterr().out

    def test_no_input(self, demo, place, capsys):
        with pytest.raises(SystemExit):
            demo(["--config-file", "stub_config.py", "--output", "out"])
        assert "--webcam" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (["--classes", "dgo"], "Did you mean 'dog'"),
            (["--classes", "cat", "dog"], "several --classes have commas between them"),
            (["--coco-json", "c.json", "--annotations", "absent.json"], "absent.json"),
            (["--labels", "labels"], "finds instances"),
            (["--output", "drawn/a.MP4"], "and 'drawn/a.MP4' looks like a file: name a folder, such as 'drawn/a'"),
            (["--webcam", "97"], "Camera 97 cannot be opened"),
            (["--batch-size", "0"], "got 0"),
            (["--input", "clip.mp4", "--max-frames", "0"], "max_frames=0"),
        ],
    )
    def test_mistakes(self, demo, clip, capsys, changed, message):
        assert demo(arguments("a.jpg") + changed) == 1
        error = capsys.readouterr().err
        assert "error: " in error
        assert message in error
