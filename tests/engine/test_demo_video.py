"""Videos, a camera and windows in the demo."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from stub_detector import StubDetector, write_stub

from elsa_det.engine import demo_video
from elsa_det.engine.demo import Demo, DemoTargets
from elsa_det.engine.demo_inputs import FrameSource
from elsa_det.engine.demo_video import VideoFile, Window, check_windows
from elsa_det.engine.predictor import Predictor
from elsa_det.errors import UserError


@pytest.fixture
def predictor(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Predictor(*write_stub(tmp_path))


def grey_frames(count, size=(64, 48)):
    """Frames that grow lighter, so that each is known by its brightness."""
    return [np.full((size[1], size[0], 3), level, dtype=np.uint8) for level in levels(count)]


def levels(count):
    return np.linspace(40, 220, count).round()


def write(path, count=10, fps=12.5, size=(64, 48)):
    video = VideoFile(path, fps, size)
    for frame in grey_frames(count, size):
        video.write(frame)
    video.close()
    return Path(path)


def read(path):
    with FrameSource(path) as source:
        frames = list(source)
        return source, frames


def run(predictor, *videos, batch_size=1, max_frames=None, threshold=0.5, **targets):
    counts = []
    with Demo(predictor, DemoTargets(**targets), batch_size=batch_size, threshold=threshold) as demo:
        for video in videos:
            demo.run_video(Path(video), lambda *count: counts.append(count), max_frames=max_frames)
    return demo.report, counts


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.MP4", "clip.avi", "clip.mkv", "clip.webm"])
def test_same_format_size_and_speed(predictor, name):
    report, counts = run(predictor, write(name, size=(320, 240)), pictures="drawn")
    assert (report.problems, report.frames, report.instances) == ([], 10, 10)
    assert counts == [(done, 10) for done in range(11)]
    assert report.written == [Path("drawn") / name]
    source, frames = read(report.written[0])
    assert (source.fps, source.count, len(frames)) == (12.5, 10, 10)
    for level, frame in zip(levels(10), frames):
        assert frame.shape == (240, 320, 3)
        beside, dog = frame[100:200, 200:300].astype(int), frame[100:200, 50:120].astype(int)
        assert np.abs(beside - level).max() < 10  # the levels are 20 apart
        assert np.ptp(beside, axis=2).max() < 10
        assert np.ptp(dog, axis=2).min() > 40
    assert report.notes == [f"drawn/{name}: 10 frames, 320×240, 12.5 frames/s, {demo_video._CODECS[name[4:].lower()]}"]


def test_json_of_frames(predictor):
    run(predictor, write("clip.mp4"), json="found.json", crops="crops", max_frames=4, batch_size=3)
    images = json.loads(Path("found.json").read_text())["images"]
    assert [(entry["file"], entry["frame"], entry["time"]) for entry in images] == [
        ("clip.mp4", 0, 0.0), ("clip.mp4", 1, 0.08), ("clip.mp4", 2, 0.16), ("clip.mp4", 3, 0.24),
    ]  # fmt: skip
    assert sorted(p.name for p in Path("crops").iterdir()) == [f"clip_00000{i}_000_dog_0.90.png" for i in range(4)]


def test_batches_of_frames(predictor):
    video = write("clip.mp4")
    for size in (1, 4):
        run(predictor, video, pictures=f"drawn{size}", json=f"{size}.json", batch_size=size)
    assert Path("1.json").read_text() == Path("4.json").read_text()
    np.testing.assert_array_equal(read("drawn1/clip.mp4")[1], read("drawn4/clip.mp4")[1])


def test_names_of_videos_and_images_do_not_meet(predictor):
    Path("more").mkdir()
    Image.new("RGB", (40, 30)).save("clip_000001.png")
    with Demo(predictor, DemoTargets(pictures="drawn", crops="crops")) as demo:
        demo.run_images([Path("clip_000001.png")])
        demo.run_video(write("clip.mp4", 2))
        demo.run_video(write("more/clip.mp4", 2))
    assert sorted(p.name for p in Path("drawn").iterdir()) == ["clip_000001.png", "clip_2.mp4", "clip_3.mp4"]
    assert len(list(Path("crops").iterdir())) == 5


def test_other_formats_and_odd_sizes_are_told(predictor):
    Path("clip.wmv").write_bytes(write("clip.avi", 3, size=(33, 48)).read_bytes())
    report, _ = run(predictor, "clip.wmv", pictures="drawn")
    assert [p.name for p in Path("drawn").iterdir()] == ["clip.mp4"]
    assert "clip.wmv is written as clip.mp4 (mp4v)" in report.notes[1]
    video = VideoFile("odd.mp4", 10, (33, 47))
    frame = np.full((47, 33, 3), 200, dtype=np.uint8)
    video.write(frame)
    video.close()
    assert video.note == "odd.mp4 is 34×48 for 33×47: codecs take even sizes only"
    (back,) = read("odd.mp4")[1]
    assert back.shape == (48, 34, 3)
    assert back.min() > 190
    with pytest.raises(ValueError, match="frame of 10×10 in a video of 33×47"):
        video.write(frame[:10, :10])


def test_codec_fallback_is_told(predictor, monkeypatch):
    monkeypatch.setitem(demo_video._CODECS, ".webm", "zzzz")
    report, _ = run(predictor, write("clip.mp4", 3).rename("clip.webm"), pictures="drawn")
    assert report.notes[0] == "drawn/clip.avi: 3 frames, 64×48, 12.5 frames/s, MJPG"
    assert report.notes[1] == "clip.webm is written as clip.avi (MJPG): OpenCV cannot write the other"
    assert [p.name for p in Path("drawn").iterdir()] == ["clip.avi"]
    assert len(read("drawn/clip.avi")[1]) == 3
    monkeypatch.setattr(demo_video, "_LAST_RESORT", (".avi", "zzzz"))
    with pytest.raises(UserError, match=r"writes no videos \(tried zzzz in \.webm, zzzz in \.avi\)"):
        run(predictor, "clip.webm", pictures="drawn")


def test_what_cannot_be_read(predictor):
    Path("bad.mp4").write_bytes(b"no video" * 50)
    whole = write("whole.avi", 40, size=(320, 240)).read_bytes()
    Path("cut.avi").write_bytes(whole[: len(whole) // 2])
    report, _ = run(predictor, "bad.mp4", "absent.mp4", "cut.avi", write("good.mp4", 2), pictures="drawn")
    assert "'bad.mp4' cannot be read: it is no video" in report.problems[0]
    assert "no video 'absent.mp4'" in report.problems[1]
    assert "of video 'cut.avi'" in report.problems[2]
    assert "frames of 40 could be read" in report.problems[2]
    assert len(report.problems) == 3
    assert 2 < report.frames < 42


def test_a_video_does_not_replace_itself(predictor):
    video = write("clip.mp4", 2)
    before = video.read_bytes()
    report, _ = run(predictor, video, pictures=".")
    assert "would be replaced" in report.problems[0]
    assert video.read_bytes() == before


def test_stopping_keeps_the_frames_that_were_done(predictor, monkeypatch):
    forward = StubDetector.forward

    def interrupted(self, batch):
        if len(self.inputs) == 4:
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(StubDetector, "forward", interrupted)
    report, _ = run(predictor, write("clip.mp4"), pictures="drawn")
    assert report.problems == ["stopped after 4 frames of video 'clip.mp4'"]
    assert len(read("drawn/clip.mp4")[1]) == 4


class Camera:
    """Stands in for cv2.VideoCapture(0): six frames at 20 frames a second."""

    def __init__(self, source):
        self.frames = grey_frames(6) if source == 0 else None

    def isOpened(self):
        return self.frames is not None

    def get(self, key):
        known = {cv2.CAP_PROP_FPS: 20.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}
        return (known | {cv2.CAP_PROP_FRAME_WIDTH: 64.0, cv2.CAP_PROP_FRAME_HEIGHT: 48.0})[key]

    def read(self):
        return (True, self.frames.pop(0)) if self.frames else (False, None)

    def release(self):
        pass


def test_camera_keeps_pace_with_the_clock(predictor, monkeypatch):
    """The model takes 0.2 s for a frame, the video has 20 frames/s: each picture stands four times."""
    from elsa_det.engine import demo

    clock = iter(np.arange(0.0, 10.0, 0.2))
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(demo.time, "monotonic", lambda: next(clock))
    with Demo(predictor, DemoTargets(pictures="drawn", json="found.json")) as running:
        running.run_camera(0, max_frames=5)
    monkeypatch.undo()
    folder = running.report.written[0]
    assert folder == Path("drawn/camera.mp4")
    assert running.report.frames == 5
    assert running.report.notes[0] == "drawn/camera.mp4: 21 frames, 64×48, 20 frames/s, mp4v"


def test_no_camera(predictor, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    with pytest.raises(UserError, match="Camera 3 cannot be opened"):
        FrameSource(3)


class TestWindows:
    @pytest.fixture
    def screen(self, monkeypatch):
        """An OpenCV with a window that answers with the keys put into ``screen``; records the sizes it shows."""
        keys, shown = [], []
        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setattr(cv2, "getBuildInformation", lambda: "\n  GUI:                           QT5\n")
        for name in ("namedWindow", "resizeWindow", "destroyAllWindows"):
            monkeypatch.setattr(cv2, name, lambda *_: None)
        monkeypatch.setattr(cv2, "imshow", lambda _, image: shown.append(image.shape[:2]))
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
        monkeypatch.setattr(cv2, "waitKey", lambda _: keys.pop(0) if keys else -1)
        return keys, shown

    def test_headless_opencv(self, monkeypatch, predictor):
        monkeypatch.setattr(cv2, "getBuildInformation", lambda: "\n  GUI:                           NONE\n")
        with pytest.raises(UserError, match="opencv-python-headless.*pip install opencv-python"):
            Demo(predictor, DemoTargets(show=True))

    @pytest.mark.skipif(
        not demo_video.sys.platform.startswith("linux"), reason="screens are told by variables on Linux"
    )
    def test_no_screen(self, monkeypatch):
        monkeypatch.setattr(cv2, "getBuildInformation", lambda: "\n  GUI:                           GTK3\n")
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(UserError, match="no screen"):
            check_windows()

    def test_images_wait_for_a_key(self, screen, predictor):
        keys, shown = screen
        for name in ("a.png", "b.png", "c.png"):
            Image.new("RGB", (640, 480)).save(name)
        keys += [-1, -1, ord(" "), -1, ord("q")]
        with Demo(predictor, DemoTargets(show=True)) as demo:
            demo.run_images([Path("a.png"), Path("b.png"), Path("c.png")])
        assert keys == []
        assert shown == [(480, 640)] * 2
        assert demo.report.problems == ["stopped after 2 of 3 images"]

    def test_videos_go_on_by_themselves(self, screen, predictor):
        keys, shown = screen
        report, _ = run(predictor, write("clip.mp4"), show=True)
        assert shown == [(48, 64)] * 10
        keys += [-1, -1, 27]
        report, _ = run(predictor, "clip.mp4", show=True)
        assert report.stopped
        assert report.frames == 3

    def test_closing_the_window_ends(self, screen, monkeypatch):
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 0.0)
        assert not Window("w").show(np.zeros((4, 4, 3), np.uint8), wait=True)
