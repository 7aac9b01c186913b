"""A page in the browser that takes an image and shows what a model finds: what ``tools/web_demo.py`` serves."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from .demo_outputs import Answer, Selection, class_name, label_pixels
from .predictor import Predictor, class_names

# Nothing but this server: whatever a page of gradio's would fetch from elsewhere stays away.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
_FONTS = ["system-ui", "sans-serif"]
_HOUR = 3600


@dataclass(frozen=True, eq=False)
class Found:
    """A model's outputs for an image, kept while the user moves the threshold."""

    image: np.ndarray
    """(H, W, 3) uint8, BGR."""
    outputs: dict[str, Any]


class WebDemo:
    """What the page does, without the page."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.metadata = predictor, predictor.metadata
        self.names = class_names(self.metadata)

    @property
    def description(self) -> str:
        """A line about the model."""
        kind = type(self.predictor.model).__name__
        return f"{kind}, {len(self.names)} classes: {', '.join(self.names)}" if self.names else kind

    def find(self, image: np.ndarray | None) -> Found | None:
        """Predict on an (H, W, 3) uint8 image, RGB; None without one."""
        if image is None:
            return None
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        return Found(bgr, self.predictor(bgr))

    def show(self, found: Found | None, threshold: float) -> tuple[np.ndarray | None, dict[str, list]]:
        """What is put on the page.

        Args:
            found: Of :meth:`find`.
            threshold: Instances that score less are left out, in [0, 1].

        Returns:
            The image drawn upon, (H', W', 3) uint8, RGB, and the table: ``{"headers": [...], "data": [[...], ...]}``.
            Both are empty without an image.
        """
        if found is None:
            return None, {"headers": [], "data": []}
        selection = Selection(threshold)
        answer = selection.answer(found.outputs, found.image, "image", "image")
        drawn = selection.draw(answer, self.metadata)
        return np.ascontiguousarray(drawn[:, :, ::-1]), self._table(answer)

    def _table(self, answer: Answer) -> dict[str, list]:
        if answer.labels is not None:
            rows: list[list[Any]] = [
                [class_name(index, self.names), pixels, f"{pixels / answer.labels.size:.1%}"]
                for index, pixels in label_pixels(answer.labels)
            ]
            return {"headers": ["class", "pixels", "share"], "data": rows}
        assert answer.instances is not None
        headers = ["class", "score", "x0", "y0", "x1", "y1"]
        found = answer.instances
        rows = [
            [class_name(index, self.names), round(score, 3), *(round(side, 1) for side in box)]
            for index, score, box in zip(
                found.pred_classes.tolist(), found.scores.tolist(), found.pred_boxes.tensor.tolist()
            )
        ]
        if found.has("pred_masks"):
            headers.append("mask pixels")
            rows = [[*row, int(mask.sum())] for row, mask in zip(rows, found.pred_masks)]
        return {"headers": headers, "data": rows}


def build_page(predictor: Predictor, *, threshold: float = 0.5) -> Any:
    """The page, a ``gradio.Blocks``; :func:`serve` starts it.

    Raises:
        UserError: gradio is not installed, or the threshold is not in [0, 1].
    """
    gradio = require_gradio()
    demo, start = WebDemo(predictor), Selection(threshold).threshold

    with gradio.Blocks(title="elsa_det", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as page:
        gradio.Markdown(f"## elsa_det\n{demo.description}")
        found = gradio.State()
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(
                    label="Image", type="numpy", image_mode="RGB", sources=["upload", "clipboard"], elem_id="image"
                )
                score = gradio.Slider(0, 1, value=start, step=0.01, label="Confidence threshold", elem_id="threshold")
            with gradio.Column():
                # Gradio's share button would send the picture to another server.
                buttons = ["download", "fullscreen"]
                drawn = gradio.Image(label="Found", format="png", interactive=False, buttons=buttons, elem_id="drawn")
        table = gradio.Dataframe(label="What was found", interactive=False, elem_id="table")
        shown: dict[str, Any] = {"fn": demo.show, "inputs": [found, score], "outputs": [drawn, table]}
        image.change(demo.find, image, found, api_name=False).then(**shown, api_name=False)
        score.change(**shown, api_name=False, trigger_mode="always_last", show_progress="hidden")
    return page


def serve(page: Any, *, port: int | None = None, block: bool = True) -> str:
    """Serve a page on 127.0.0.1, to this computer alone.

    Args:
        page: Of :func:`build_page`.
        port: The TCP port; default: the first free one from 7860.
        block: Stay until Ctrl-C.

    Returns:
        The page's address.

    Raises:
        OSError: The port is taken.
        UserError: It is none, or gradio is not installed.
    """
    if port is not None and not 1 <= port <= 65535:
        raise UserError(f"A TCP port is a number from 1 to 65535, got {port}.")
    gradio = require_gradio()
    theme = gradio.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"])
    from starlette.middleware import Middleware

    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        quiet=True,
        footer_links=[],
        ssr_mode=False,
        show_error=True,
        theme=theme,
        prevent_thread_lock=True,
        app_kwargs={"middleware": [Middleware(_StayHere)]},
    )
    if block:
        print(f"The page is at {address} (this computer only); Ctrl-C ends.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        with contextlib.suppress(KeyboardInterrupt):
            page.close(verbose=False)
    return address


class _StayHere:
    """ASGI middleware that tells browsers to fetch nothing from other servers."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def require_gradio() -> Any:
    """
    Raises:
        UserError: It is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError(
            "The web demo needs gradio: pip install 'elsa_det[web]', or pip install 'gradio>=6'."
        ) from error
    return gradio
