"""Prediction from a config and a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from stub_detector import StubDetector, write_stub

from elsa_det.d2 import LazyConfig, MetadataCatalog
from elsa_det.engine.predictor import Predictor, class_names, read_image


@pytest.fixture
def stub(tmp_path):
    return write_stub(tmp_path)


@pytest.fixture
def predictor(stub):
    return Predictor(*stub)


def bgr(height=10, width=16):
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[:] = (10, 20, 30)
    return image


class TestPredicting:
    def test_image_is_resized_and_in_the_configs_channel_order(self, predictor):
        instances = predictor(bgr())["instances"]
        (entry,) = predictor.model.inputs
        assert entry["image"].shape == (3, 20, 32)
        assert entry["image"].dtype == torch.uint8
        assert entry["image"].amax(dim=(1, 2)).tolist() == [30, 20, 10]
        assert (entry["height"], entry["width"]) == (10, 16)
        assert instances.image_size == (10, 16)
        assert instances.scores.tolist() == pytest.approx([0.9, 0.3])
        assert instances.pred_boxes.tensor.tolist() == [[0, 0, 8, 10], [0, 0, 16, 5]]

    def test_bgr_models_get_bgr(self, stub):
        predictor = Predictor(*stub, overrides=["dataloader.test.mapper.image_format=BGR"])
        predictor(bgr())
        assert predictor.model.inputs[0]["image"].amax(dim=(1, 2)).tolist() == [10, 20, 30]

    def test_no_augmentation_leaves_the_image_as_it_is(self, stub):
        predictor = Predictor(*stub, overrides=["dataloader.test.mapper.augmentations=[]"])
        image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
        predictor(image)
        seen = predictor.model.inputs[0]["image"].numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(seen, image[:, :, ::-1])

    def test_pil_images_of_any_mode(self, predictor):
        predictor(Image.fromarray(bgr()[:, :, ::-1].copy()))
        predictor(Image.new("L", (16, 10), 77))
        assert predictor.model.inputs[0]["image"].amax(dim=(1, 2)).tolist() == [30, 20, 10]
        assert predictor.model.inputs[1]["image"].amax(dim=(1, 2)).tolist() == [77, 77, 77]

    def test_batch(self, predictor):
        answers = predictor.predict_batch([bgr(10, 16), bgr(40, 20)])
        assert [a["instances"].image_size for a in answers] == [(10, 16), (40, 20)]
        assert [tuple(e["image"].shape) for e in predictor.model.inputs] == [(3, 20, 32), (3, 40, 20)]
        assert predictor.predict_batch([]) == []

    @pytest.mark.parametrize(
        ("image", "error", "message"),
        [
            (None, TypeError, "cv2.imread returns None"),
            ("a.jpg", TypeError, "got str"),
            (np.zeros((4, 4), dtype=np.uint8), ValueError, r"\(4, 4\) uint8"),
            (np.zeros((4, 4, 3), dtype=np.float32), ValueError, "float32"),
            (np.zeros((0, 4, 3), dtype=np.uint8), ValueError, r"\(0, 4, 3\)"),
        ],
    )
    def test_other_things_are_refused(self, predictor, image, error, message):
        with pytest.raises(error, match=message):
            predictor(image)


class TestBuilding:
    def test_class_names(self, predictor):
        assert predictor.dataset_name == "stub_val"
        assert predictor.class_names == ["cat", "dog"]
        assert predictor.metadata is MetadataCatalog.get("stub_val")

    def test_an_unknown_dataset_is_no_obstacle(self, stub, caplog):
        cfg = LazyConfig.load(str(stub[0]))
        cfg.dataloader.test.dataset.names = {
            "_target_": "elsa_det.data.registered_coco",
            "name": "nowhere",
            "json_file": "nowhere.json",
            "image_root": "nowhere",
        }
        predictor = Predictor(cfg, stub[1])
        assert predictor.dataset_name is None
        assert predictor.class_names is None
        assert "nowhere.json" in caplog.text

    def test_saved_and_loaded_configs(self, stub, tmp_path, monkeypatch):
        monkeypatch.setenv("ELSA_DET_TRUST", "stub_detector")  # whose class the saved config calls
        cfg = LazyConfig.load(str(stub[0]))
        saved = tmp_path / "config.yaml"
        LazyConfig.save(cfg, str(saved))
        for config in (cfg, saved, str(saved)):
            assert Predictor(config, stub[1]).model.weight.tolist() == pytest.approx([0.3, 0.9])
        Predictor(cfg, overrides=[f"train.init_checkpoint={stub[1]}"])
        assert cfg.train.init_checkpoint == ""

    def test_a_ready_model_keeps_its_mode(self, stub):
        model = StubDetector(2).train()
        predictor = Predictor(stub[0], model=model)
        predictor(bgr())
        assert model.training
        with pytest.raises(ValueError, match="ready model"):
            Predictor(stub[0], stub[1], model=model)

    def test_missing_files(self, stub, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"absent\.py"):
            Predictor(tmp_path / "absent.py", stub[1])
        with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
            Predictor(stub[0], tmp_path / "absent.pth")
        for none in ("", "none"):
            with pytest.raises(ValueError, match="Prediction needs weights"):
                Predictor(stub[0], overrides=[f"train.init_checkpoint={none}"])

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ({"weight": torch.zeros(2), "extra.bias": torch.zeros(1)}, r"extra\.bias"),
            ({"weight": torch.zeros(5)}, r"\(5,\)"),
            ({"other": torch.zeros(2)}, "other"),
        ],
    )
    def test_a_checkpoint_of_another_model_is_refused(self, stub, tmp_path, weights, message):
        other = tmp_path / "other.pth"
        torch.save({"model": weights}, other)
        with pytest.raises(ValueError, match=message):
            Predictor(stub[0], other)
        Predictor(stub[0], other, strict=False)

    def test_damaged_checkpoints_and_configs(self, stub, tmp_path):
        damaged = tmp_path / "damaged.pth"
        damaged.write_bytes(stub[1].read_bytes()[:200])
        with pytest.raises(ValueError, match=r"damaged\.pth"):
            Predictor(stub[0], damaged)
        broken = tmp_path / "broken.py"
        broken.write_text("model = nonsense\n")
        with pytest.raises(ValueError, match=r"broken\.py.*NameError"):
            Predictor(broken, stub[1])
        broken.write_text("train = dict(device='cpu')\n")
        with pytest.raises(ValueError, match="no 'model'"):
            Predictor(broken, stub[1])

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("train.device", "key=value"),
            ("train.device=[", "not understood"),
            ("dataloader.test.mapper.image_format=YUV", "'YUV'"),
            ("dataloader.test.mapper=null", "dataloader.test.mapper"),
        ],
    )
    def test_bad_overrides(self, stub, override, message):
        with pytest.raises(ValueError, match=message):
            Predictor(*stub, overrides=[override])

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_an_absent_device(self, stub):
        with pytest.raises(ValueError, match="cuda"):
            Predictor(*stub, device="cuda")


class TestReadImage:
    def test_bgr_and_upright(self, tmp_path):
        picture = Image.new("RGB", (4, 2), (1, 2, 3))
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        picture.save(tmp_path / "a.png", exif=exif)
        image = read_image(tmp_path / "a.png")
        assert image.shape == (4, 2, 3)
        assert image[0, 0].tolist() == [3, 2, 1]

    def test_unreadable(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"a\.jpg' cannot be read"):
            read_image(tmp_path / "a.jpg")
        with pytest.raises(FileNotFoundError, match=r"b\.jpg"):
            read_image(tmp_path / "b.jpg")
        Image.new("RGB", (64, 64)).save(tmp_path / "c.png")
        (tmp_path / "d.png").write_bytes((tmp_path / "c.png").read_bytes()[:-40])
        with pytest.raises(ValueError, match=r"d\.png' cannot be read"):
            read_image(tmp_path / "d.png")


def test_class_names_are_read_from_the_json_of_a_dataset_that_is_not_loaded(tmp_path):
    json_file = tmp_path / "a.json"
    json_file.write_text('{"categories": [{"id": 9, "name": "late"}, {"id": 2, "name": "early"}]}')
    metadata = MetadataCatalog.get("names_test").set(json_file=str(json_file))
    assert class_names(metadata) == ["early", "late"]
    MetadataCatalog.remove("names_test")
