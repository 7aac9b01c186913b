"""The web demo: what it shows, and the page itself in headless Chromium."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stub_detector import write_stub

from elsa_det.d2 import MetadataCatalog
from elsa_det.engine.predictor import Predictor
from elsa_det.engine.web_demo import WebDemo, build_page, require_gradio, serve
from elsa_det.errors import UserError

GREY = np.full((30, 40, 3), 90, np.uint8)
CAT = ["cat", 0.3, 0.0, 0.0, 40.0, 15.0, 600]
DOG = ["dog", 0.9, 0.0, 0.0, 20.0, 30.0, 600]


@pytest.fixture
def predictor(tmp_path):
    return Predictor(*write_stub(tmp_path))


class TestAnswers:
    def test_picture_and_table_follow_the_threshold(self, predictor):
        demo = WebDemo(predictor)
        assert demo.description == "StubDetector, 2 classes: cat, dog"
        found = demo.find(GREY)
        headers = ["class", "score", "x0", "y0", "x1", "y1", "mask pixels"]
        drawn, table = demo.show(found, 0.5)
        assert table == {"headers": headers, "data": [DOG]}
        both, table = demo.show(found, 0.2)
        assert table == {"headers": headers, "data": [DOG, CAT]}
        assert demo.show(found, 0.95)[1] == {"headers": headers, "data": []}
        assert len(predictor.model.inputs) == 1  # moving the threshold does not run the model
        assert drawn.shape == (480, 640, 3)
        assert (drawn[60:140, 400:560] == 90).all()
        assert (both[60:140, 400:560] != 90).any(axis=2).all()

    def test_images_are_rgb(self, predictor):
        image = GREY.copy()
        image[...] = (200, 100, 0)
        demo = WebDemo(predictor)
        drawn, _ = demo.show(demo.find(image), 0.95)
        assert drawn[200, 200].tolist() == [200, 100, 0]
        assert predictor.model.inputs[0]["image"].amax(dim=(1, 2)).tolist() == [200, 100, 0]

    def test_no_image(self, predictor):
        demo = WebDemo(predictor)
        assert demo.show(demo.find(None), 0.5) == (None, {"headers": [], "data": []})

    def test_segmentor(self):
        class Halves:
            metadata = MetadataCatalog.get("web_demo_halves").set(stuff_classes=["sky", "road"])
            model = torch.nn.Identity()

            def __call__(self, image):
                labels = torch.zeros(image.shape[:2], dtype=torch.int64)
                labels[:, 30:] = 1
                return {"sem_seg_labels": labels}

        demo = WebDemo(Halves())
        drawn, table = demo.show(demo.find(GREY), 0.5)
        assert table == {
            "headers": ["class", "pixels", "share"],
            "data": [["sky", 900, "75.0%"], ["road", 300, "25.0%"]],
        }
        assert drawn.shape[0] == 480
        MetadataCatalog.remove("web_demo_halves")


def test_without_gradio_the_remedy_is_told(monkeypatch, predictor):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for call in (require_gradio, lambda: build_page(predictor)):
        with pytest.raises(UserError, match=r"pip install 'elsa_det\[web\]'"):
            call()


def test_ports():
    with pytest.raises(UserError, match="from 1 to 65535, got 70000"):
        serve(None, port=70000)


@pytest.fixture
def connections(monkeypatch):
    """Other computers that this process asks for or connects to."""
    asked: list[str] = []
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def is_here(host):
        return host is None or str(host) in ("localhost", "127.0.0.1", "::1")

    def looking_up(host, *args, **kwargs):
        if not is_here(host):
            asked.append(str(host))
        return look_up(host, *args, **kwargs)

    def connecting(self, address):
        if isinstance(address, tuple) and not is_here(address[0]):
            asked.append(str(address[0]))
        return connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", looking_up)
    monkeypatch.setattr(socket.socket, "connect", connecting)
    return asked


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs: pip install 'elsa_det[web-test]'")
    chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'profile'}", "window-size=1200,1000",
    ):  # fmt: skip
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driven = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield driven
    driven.quit()


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)
    return found


def test_page_in_a_browser(predictor, tmp_path, connections, request):
    """An image goes in; the picture and the table come; the threshold changes both; no other server is asked."""
    pytest.importorskip("gradio", reason="needs: pip install 'elsa_det[web-test]'")
    browser = request.getfixturevalue("browser")
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    page = build_page(predictor)
    try:
        address = serve(page, block=False)
        assert address.startswith("http://127.0.0.1:")
        browser.get(address)

        def all_of(selector):
            return browser.find_elements("css selector", selector)

        def table():
            return "".join(element.text for element in all_of("#table")).split("mask pixels")[-1].split()

        wait_for(lambda: all_of("#image input[type=file]"))[0].send_keys(str(tmp_path / "grey.png"))
        wait_for(lambda: all_of("#drawn img"))
        wait_for(lambda: "dog" in table())
        assert table() == ["dog", "0.9", "0", "0", "20", "30", "600"]
        first = all_of("#drawn img")[0].get_attribute("src")
        size = "return [arguments[0].naturalWidth, arguments[0].naturalHeight]"
        assert wait_for(lambda: browser.execute_script(size, all_of("#drawn img")[0])) == [640, 480]

        number = all_of("#threshold input[type=number]")[0]
        number.clear()
        number.send_keys("0.2\n")
        wait_for(lambda: "cat" in table())
        assert table()[7:] == ["cat", "0.3", "0", "0", "40", "15", "600"]
        assert wait_for(lambda: all_of("#drawn img"))[0].get_attribute("src") != first
        assert browser.save_screenshot(str(tmp_path / "page.png"))

        fetched = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in fetched if m["method"] == "Network.requestWillBeSent"]
        assert any(url.startswith(address) for url in urls)
        assert [u for u in urls if not u.startswith((address, "data:", "blob:", "chrome:"))] == []
        assert connections == []
    finally:
        page.close()


def test_tool_tells_what_is_wrong(tmp_path, monkeypatch, capsys):
    import importlib.util

    spec = importlib.util.spec_from_file_location("web_demo_tool", Path(__file__).parents[2] / "tools" / "web_demo.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert tool.main(["--config-file", "absent.py"]) == 1
    assert capsys.readouterr().err.startswith("error: The web demo needs gradio")
