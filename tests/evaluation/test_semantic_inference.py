"""Windows, sizes and mirror images against the plain computation with whole maps, and against the published one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from elsa_det import get_config
from elsa_det.checkpoint import convert_segmentor_state_dict
from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import instantiate
from elsa_det.errors import UserError
from elsa_det.evaluation import SemanticInference
from elsa_det.evaluation import semantic_inference as module
from elsa_det.evaluation.semantic_inference import WindowedScores, window_starts
from elsa_det.evaluation.semantic_modes import inference_in_mode, semantic_modes
from elsa_det.modeling import ELSASwin, Segmentor
from elsa_det.modeling.semantic import resized_rows

CLASSES = 6


class Stub(Segmentor):
    """Logits from each 4×4 patch, and from how high it lies in the input, so that windows differ from wholes."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, CLASSES, 4, 4)
        self.decode_head = nn.Module()
        self.decode_head.num_classes, self.decode_head.align_corners = CLASSES, False
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 100.0))
        self.register_buffer("pixel_std", torch.full((3, 1, 1), 50.0))
        self.input_format, self.return_logits = "RGB", False
        self.sizes = []

    def predict_logits(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        height, width = images.shape[-2:]
        logits = self.patch(F.pad(images, (0, -width % 4, 0, -height % 4)))
        rows = torch.linspace(-1, 1, logits.shape[-2])[:, None]
        return logits + rows * torch.linspace(-1, 1, CLASSES)[:, None, None]


@pytest.fixture
def stub():
    return Stub().eval()


def sample(rows, columns, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.randint(0, 256, (3, rows, columns), dtype=torch.uint8, generator=generator), **more}


def resize(scores, size):
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def whole_scores(stub, image, size):
    return resize(resize(stub.predict_logits(image), image.shape[-2:]), size)


@torch.no_grad()
def slide_scores(stub, image, crop, stride, size=None):
    """The plain way: padded full-size sums, and counts."""
    height, width = image.shape[-2:]
    total, counts = torch.zeros(1, CLASSES, height, width), torch.zeros(1, 1, height, width)
    for i in range(max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1):
        for j in range(max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(i * stride[0] + crop[0], height), min(j * stride[1] + crop[1], width)
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            window = image[..., top:bottom, left:right]
            logits = resize(stub.predict_logits(window), window.shape[-2:])
            total += F.pad(logits, (left, width - right, top, height - bottom))
            counts += F.pad(torch.ones_like(logits[:, :1]), (left, width - right, top, height - bottom))
    assert (counts > 0).all()
    mean = total / counts
    return mean if size is None else resize(mean, size)


def check(result, expected):
    torch.testing.assert_close(result["sem_seg"], expected, rtol=0, atol=1e-5)
    assert result["sem_seg_labels"].shape == expected.shape[-2:]
    assert torch.equal(result["sem_seg_labels"], result["sem_seg"].argmax(0))


@pytest.mark.parametrize("size", [(37, 50), (64, 90), (21, 33)])
def test_one_pass_is_what_the_segmentor_gives(stub, size, monkeypatch):
    monkeypatch.setattr(module, "row_blocks", lambda height, _: [(i, min(i + 5, height)) for i in range(0, height, 5)])
    stub.return_logits = True
    given = sample(37, 50, height=size[0], width=size[1])
    (result,) = SemanticInference(stub)([given])
    with torch.no_grad():
        check(result, whole_scores(stub, stub.normalise(given)[None], size)[0])
        expected = stub.inference([given])[0]
    assert torch.equal(result["sem_seg_labels"], expected["sem_seg_labels"])


@pytest.mark.parametrize(
    ("crop", "stride"), [((16, 24), (10, 16)), ((16, 16), (16, 16)), ((40, 20), (7, 9)), ((99, 99), (5, 5))]
)
def test_windows(stub, crop, stride, monkeypatch):
    monkeypatch.setattr(module, "row_blocks", lambda height, _: [(i, min(i + 7, height)) for i in range(0, height, 7)])
    stub.return_logits = True
    given = sample(37, 50, height=55, width=61)
    (result,) = SemanticInference(stub, crop=crop, stride=stride)([given])
    check(result, slide_scores(stub, stub.normalise(given)[None], crop, stride, (55, 61))[0])


def test_windows_cover_the_image_and_end_with_it():
    assert window_starts(100, 40, 30) == [0, 30, 60]
    assert window_starts(101, 40, 30) == [0, 30, 60, 61]
    assert window_starts(30, 30, 10) == [0]
    assert window_starts(1024, 512, 341) == [0, 341, 512]


def test_sizes_and_mirror_images(stub, tmp_path):
    """Sizes other than 1 come from the file; probabilities are averaged at the size of the result."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    small = np.asarray(Image.fromarray(pixels).resize((30, 20), Image.Resampling.BILINEAR)).copy()
    tensors = {
        0.5: np.asarray(Image.fromarray(pixels).resize((15, 10), Image.Resampling.BILINEAR)).copy(),
        1.0: small,
        1.5: np.asarray(Image.fromarray(pixels).resize((45, 30), Image.Resampling.BILINEAR)).copy(),
    }
    tensors = {ratio: torch.from_numpy(array).permute(2, 0, 1) for ratio, array in tensors.items()}
    given = {"image": tensors[1.0], "height": 40, "width": 60, "file_name": str(tmp_path / "a.png")}
    total = torch.zeros(CLASSES, 40, 60)
    with torch.no_grad():
        for tensor in tensors.values():
            image = stub.normalise({"image": tensor})[None]
            total += whole_scores(stub, image, (40, 60)).softmax(1)[0]
            total += whole_scores(stub, image.flip(-1), (40, 60)).softmax(1)[0].flip(-1)
    stub.sizes.clear()
    stub.return_logits = True
    (result,) = SemanticInference(stub, ratios=[0.5, 1.0, 1.5], flip=True)([given])
    check(result, total / 6)
    assert stub.sizes == [(10, 15), (10, 15), (20, 30), (20, 30), (30, 45), (30, 45)]


def test_without_a_file_sizes_come_from_the_image(stub):
    SemanticInference(stub, ratios=[2.0])([sample(8, 12)])
    assert stub.sizes == [(16, 24)]


def test_windows_and_sizes_together(stub):
    stub.return_logits = True
    given = sample(24, 32)
    (result,) = SemanticInference(stub, crop=(16, 16), stride=(8, 8), flip=True)([given])
    image = stub.normalise(given)[None]
    straight = slide_scores(stub, image, (16, 16), (8, 8)).softmax(1)
    mirrored = slide_scores(stub, image.flip(-1), (16, 16), (8, 8)).flip(-1).softmax(1)
    check(result, ((straight + mirrored) / 2)[0])


@pytest.mark.parametrize("options", [{}, {"crop": (256, 256), "stride": (170, 170)}])
def test_memory_is_bounded(options):
    """150 classes at 512×1024 would take 315 MB; no tensor comes near, and rows are worked on in blocks."""

    class Flat(Stub):
        def predict_logits(self, images):
            height, width = images.shape[-2:]
            return torch.zeros(1, 150, -(-height // 4), -(-width // 4))

    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return out

    model = Flat().eval()
    model.decode_head.num_classes = 150
    given = {"image": torch.zeros(3, 512, 1024, dtype=torch.uint8), "height": 128, "width": 256}
    with Largest() as largest:
        (result,) = SemanticInference(model, **options)([given])
    assert result["sem_seg_labels"].shape == (128, 256)
    # 78.6 million numbers at full size; blocks have 8.4 million
    assert largest.elements < 9e6


def test_mistakes(stub):
    with pytest.raises(UserError, match=r"stride=\[20, 8\] .*gaps"):
        SemanticInference(stub, crop=(16, 16), stride=(20, 8))
    with pytest.raises(UserError, match="give crop as well"):
        SemanticInference(stub, stride=(8, 8))
    with pytest.raises(UserError, match=r"ratios are .* got \[1.0, -1.0\]"):
        SemanticInference(stub, ratios=(1.0, -1.0))
    with pytest.raises(UserError, match=r"crop is .* got \[0, 4\]"):
        SemanticInference(stub, crop=(0, 4))
    with pytest.raises(IndexError, match="whole rows"):
        WindowedScores([(0, 0, torch.zeros(1, 2, 2, 2))], (8, 8), (8, 8))[..., 0:4, 0:4]


class TestModes:
    def config(self, modes, **inference):
        return OmegaConf.create({"train": {"semantic_modes": modes}, "dataset": {"inference": inference}})

    def test_what_each_mode_runs(self, stub):
        cfg = self.config(["whole", "slide", "ms"], crop=[16, 24], stride=[8, 8], ratios=[0.5, 1.0], flip=True)
        assert semantic_modes(cfg, stub) == ["whole", "slide", "ms"]
        slide, ms, both = (inference_in_mode(cfg, stub, mode) for mode in ("slide", "ms", "ms_slide"))
        assert (slide.crop, slide.stride, slide.ratios, slide.flip) == ((16, 24), (8, 8), [1.0], False)
        assert (ms.crop, ms.ratios, ms.flip) == (None, [0.5, 1.0], True)
        assert (both.crop, both.ratios) == ((16, 24), [0.5, 1.0])

    def test_stride_is_two_thirds_of_the_window_by_default(self, stub):
        assert inference_in_mode(self.config(["slide"], crop=[512, 96]), stub, "slide").stride == (341, 64)

    def test_mistakes(self, stub):
        with pytest.raises(UserError, match=r"there are whole, slide, ms, ms_slide"):
            semantic_modes(self.config(["sliding"]), stub)
        with pytest.raises(UserError, match="is empty"):
            semantic_modes(self.config([]), stub)
        with pytest.raises(UserError, match="for segmentors, the model is a Linear"):
            semantic_modes(self.config(["ms"]), nn.Linear(1, 1))
        assert semantic_modes(self.config(["whole"]), nn.Linear(1, 1)) == ["whole"]
        with pytest.raises(UserError, match="dataset.inference has no window"):
            semantic_modes(self.config(["slide"], window=[3, 3]), stub)
        with pytest.raises(UserError, match="needs dataset.inference.crop"):
            semantic_modes(self.config(["slide"]), stub)
        with pytest.raises(UserError, match="needs dataset.inference.ratios"):
            semantic_modes(self.config(["ms"]), stub)


def test_rows_of_windows_resize_like_a_map():
    windows = [
        (0, 0, torch.rand(1, 2, 3, 4)),
        (0, 4, torch.rand(1, 2, 3, 4)),
        (5, 0, torch.rand(1, 2, 3, 4)),
        (5, 4, torch.rand(1, 2, 3, 4)),
    ]
    scores = WindowedScores(windows, (9, 12), (14, 16))
    whole = scores[..., 0:14, :]
    torch.testing.assert_close(resized_rows(scores, [(21, 40)], 6, 13), resize(whole, (21, 40))[..., 6:13, :])


class TestPublished:
    """The published segmentor's windows and flip average, recorded from it."""

    GOLDEN = Path(__file__).parents[1] / "golden" / "upernet_full.pt"

    @pytest.fixture(scope="class")
    def golden(self):
        return torch.load(self.GOLDEN, weights_only=True)

    @pytest.fixture(scope="class")
    def model(self, golden):
        kept = ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "group_width")
        cfg = get_config("ade20k/elsa_t_upernet_160k").model
        cfg.backbone = L(ELSASwin)(**{key: golden["config"]["backbone"][key] for key in kept})
        cfg.decode_head.num_classes = golden["config"]["decode_head"]["num_classes"]
        cfg.decode_head.ignore_label = 255
        cfg.decode_head.channels = golden["config"]["decode_head"]["channels"]
        cfg.auxiliary_head.channels = golden["config"]["auxiliary_head"]["channels"]
        cfg.pixel_mean, cfg.pixel_std = [0.0] * 3, [1.0] * 3  # the recorded images are normalised
        cfg.return_logits = True
        model = instantiate(cfg)
        model.load_state_dict(convert_segmentor_state_dict(golden["state_dict"]))
        return model.eval()

    def test_sliding_window(self, golden, model):
        recorded = golden["slide"]
        inference = SemanticInference(model, crop=recorded["crop_size"], stride=recorded["stride"])
        (result,) = inference([{"image": golden["img"][0]}])
        torch.testing.assert_close(result["sem_seg"], recorded["seg_logits_img0"][0], rtol=0, atol=1e-5)

    def test_mean_with_the_mirror_image(self, golden, model):
        height, width = golden["img_meta"]["ori_shape"][:2]
        given = {"image": golden["img"][0], "height": height, "width": width}
        (result,) = SemanticInference(model, flip=True)([given])
        assert torch.equal(result["sem_seg_labels"], golden["aug_flip_pred_ori_size_img0"][0].long())
