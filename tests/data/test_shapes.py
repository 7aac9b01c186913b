"""The quickstart set: the same everywhere, correct annotations, found through the catalogues."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from elsa_det.d2 import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from elsa_det.data.shapes import (
    CLASSES,
    SceneSpec,
    SetSpec,
    draw_scene,
    is_complete,
    mask_to_polygons,
    register_shapes,
    write_shapes,
)

SMALL = SetSpec(train=5, val=3)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "quickstart"
    assert write_shapes(folder, SMALL)
    return folder


@pytest.fixture
def catalogues(root):
    yield register_shapes(root)
    for name in ("quickstart_train", "quickstart_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


class TestScene:
    @pytest.mark.parametrize(
        ("split", "index", "pixels", "labels", "classes"),
        [
            ("train", 0, "31884edf907530cc", "6a519e794b323b45", ["disc", "disc"]),
            ("train", 3, "8547391dd55cb07a", "027a5bcd54383bf3", ["square", "disc", "ring", "cross", "ring"]),
            ("val", 79, "a90d0c32e280fec4", "54646fc96001ea45", ["square", "square"]),
        ],
    )
    def test_pixels_are_as_recorded(self, split, index, pixels, labels, classes):
        scene = draw_scene(SceneSpec(), split, index)
        assert [CLASSES[i] for i in scene.classes] == classes
        assert digest(scene.label_map().tobytes()) == labels
        assert digest(scene.image.tobytes()) == pixels

    def test_seed_split_and_index_each_change_the_picture(self):
        pictures = [
            draw_scene(SceneSpec(seed=seed), split, index).image.tobytes()
            for seed, split, index in [(0, "train", 0), (1, "train", 0), (0, "val", 0), (0, "train", 1)]
        ]
        assert len(set(pictures)) == 4

    def test_objects_are_as_large_as_asked_and_mostly_visible(self):
        spec = SceneSpec(min_object=20, max_object=40)
        for index in range(15):
            scene = draw_scene(spec, "train", index)
            assert 1 <= len(scene.classes) <= 6
            assert scene.masks.sum(axis=0).max() == 1
            for mask in scene.masks:
                assert mask.sum() >= 20
                assert np.ptp(np.flatnonzero(mask.any(axis=0))) < 44  # a squeezed corner may reach a little further

    def test_every_class_occurs_and_sizes_spread(self):
        scenes = [draw_scene(SceneSpec(), "train", index) for index in range(60)]
        counts = np.bincount([i for scene in scenes for i in scene.classes], minlength=len(CLASSES))
        areas = np.concatenate([scene.masks.sum(axis=(1, 2)) for scene in scenes])
        assert counts.min() >= 20
        assert 0.2 < np.mean(areas > 32**2) < 0.6
        assert areas.max() > 2500

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"min_object": 80}, "min_object <= max_object"),
            ({"min_objects": 0}, "min_objects"),
            ({"min_visible": 0.0}, "min_visible"),
            ({"seed": -1}, "seed"),
        ],
    )
    def test_bad_parameters_are_named(self, change, message):
        with pytest.raises(ValueError, match=message):
            SceneSpec(**change)

    def test_whole_numbers_are_asked_for(self):
        with pytest.raises(TypeError, match="image_size"):
            SceneSpec(image_size=128.0)
        with pytest.raises(ValueError, match="train"):
            SetSpec(train=0)


class TestOutlines:
    def test_rectangle(self):
        mask = np.zeros((5, 6), dtype=bool)
        mask[1:4, 2:5] = True
        assert mask_to_polygons(mask) == [[2, 1, 5, 1, 5, 4, 2, 4]]

    def test_parts_that_touch_at_a_corner_are_two(self):
        assert sorted(mask_to_polygons(np.eye(2, dtype=bool))) == [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]]

    def test_a_hole_is_cut_open(self):
        mask = np.ones((3, 3), dtype=bool)
        mask[1, 1] = False
        assert mask_to_polygons(mask) == [[0, 0, 3, 0, 3, 1, 0, 1], [0, 1, 1, 1, 1, 2, 2, 2, 2, 1, 3, 1, 3, 3, 0, 3]]

    def test_nothing_has_no_outline(self):
        assert mask_to_polygons(np.zeros((4, 4), dtype=bool)) == []

    def test_pycocotools_gives_the_mask_back(self):
        dice = np.random.default_rng(0)
        for density in (0.2, 0.5, 0.8) * 20:
            mask = dice.random((9, 12)) < density
            polygons = mask_to_polygons(mask)
            back = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 9, 12)))
            np.testing.assert_array_equal(back, mask)

    def test_other_arrays_are_refused(self):
        with pytest.raises(TypeError, match="uint8"):
            mask_to_polygons(np.zeros((4, 4), dtype=np.uint8))


class TestFiles:
    def test_annotations_are_as_recorded(self, root):
        assert digest((root / "annotations" / "instances_train.json").read_bytes()) == "a15e1346bdc4eb54"
        assert digest((root / "annotations" / "instances_val.json").read_bytes()) == "d0564f2348071433"

    def test_annotations_describe_the_pictures(self, root, capsys):
        coco = COCO(str(root / "annotations" / "instances_train.json"))
        capsys.readouterr()
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
        assert len(coco.imgs) == 5
        assert {"info", "licenses", "images", "annotations", "categories"} <= coco.dataset.keys()
        for image in coco.imgs.values():
            scene = draw_scene(SMALL.scene, "train", image["id"] - 1)
            np.testing.assert_array_equal(np.asarray(Image.open(root / "train" / image["file_name"])), scene.image)
            labels = np.zeros((128, 128), dtype=np.uint8)
            for annotation in coco.imgToAnns[image["id"]]:
                mask = coco.annToMask(annotation)
                labels[mask > 0] = annotation["category_id"]
                assert annotation["area"] == mask.sum()
                assert annotation["bbox"] == coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist()
                assert annotation["iscrowd"] == 0
            np.testing.assert_array_equal(
                np.asarray(Image.open(root / "labels" / "train" / image["file_name"])), labels
            )

    def test_a_complete_folder_is_left_alone(self, root):
        stamp = (root / "quickstart.json").stat().st_mtime_ns
        assert not write_shapes(root, SMALL)
        assert (root / "quickstart.json").stat().st_mtime_ns == stamp
        assert not is_complete(root, SetSpec(train=5, val=4))

    def test_other_parameters_replace_the_set_and_gaps_are_filled(self, tmp_path):
        calls = []
        assert write_shapes(tmp_path, SetSpec(train=3, val=1), progress=lambda *now: calls.append(now))
        assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
        spec = SetSpec(train=2, val=1)
        assert write_shapes(tmp_path, spec)
        assert sorted(f.name for f in (tmp_path / "train").iterdir()) == ["000000.png", "000001.png"]
        (tmp_path / "labels" / "val" / "000000.png").unlink()
        assert not is_complete(tmp_path, spec)
        assert write_shapes(tmp_path, spec)
        assert is_complete(tmp_path, spec)

    def test_an_interrupted_run_is_not_complete(self, tmp_path):
        def stop(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_shapes(tmp_path, SMALL, progress=stop)
        assert not is_complete(tmp_path, SMALL)
        assert write_shapes(tmp_path, SMALL)

    def test_a_foreign_folder_is_not_touched(self, tmp_path):
        (tmp_path / "holiday.png").write_bytes(b"mine")
        with pytest.raises(ValueError, match="not empty"):
            write_shapes(tmp_path, SMALL)
        assert [f.name for f in tmp_path.iterdir()] == ["holiday.png"]
        with pytest.raises(ValueError, match="is a file"):
            write_shapes(tmp_path / "holiday.png", SMALL)


class TestRegistration:
    def test_the_splits_are_found(self, catalogues, root):
        assert catalogues == ("quickstart_train", "quickstart_val")
        assert MetadataCatalog.get("quickstart_val").thing_classes == list(CLASSES)
        dicts = DatasetCatalog.get("quickstart_val")
        assert len(dicts) == 3
        assert dicts[0]["file_name"] == str(root / "val" / "000000.png")
        scene = draw_scene(SMALL.scene, "val", 0)
        assert [a["category_id"] for a in dicts[0]["annotations"]] == scene.classes
        assert MetadataCatalog.get("quickstart_val").thing_dataset_id_to_contiguous_id == {i + 1: i for i in range(6)}
        assert len(get_detection_dataset_dicts("quickstart_train")) == 5

    def test_twice_is_fine_and_another_root_takes_over(self, catalogues, root, tmp_path):
        register_shapes(root)
        register_shapes(tmp_path)
        assert MetadataCatalog.get("quickstart_train").image_root == str(tmp_path / "train")

    def test_the_default_root_follows_the_environment(self, catalogues, monkeypatch):
        monkeypatch.setenv("DETECTRON2_DATASETS", "elsewhere")
        register_shapes()
        json_file = MetadataCatalog.get("quickstart_train").json_file
        assert json_file.replace("\\", "/") == "elsewhere/quickstart/annotations/instances_train.json"

    def test_a_missing_set_says_how_to_draw_it(self, catalogues, tmp_path):
        register_shapes(tmp_path / "absent")
        with pytest.raises(FileNotFoundError, match=r"prepare_quickstart\.py --output .*absent"):
            DatasetCatalog.get("quickstart_train")


def test_json_is_plain_ascii(root):
    text = (root / "annotations" / "instances_val.json").read_bytes()
    assert json.loads(text.decode("ascii"))["info"]["version"] == "1"


class TestCommand:
    @pytest.fixture(scope="class")
    def prepare(self):
        tool = Path(__file__).parents[2] / "datasets" / "prepare_quickstart.py"
        spec = importlib.util.spec_from_file_location("prepare_quickstart_tool", tool)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main

    def test_draws_once(self, prepare, tmp_path, capsys):
        options = ["--output", str(tmp_path / "set"), "--train", "2", "--val", "1", "--image-size", "96", "--seed", "5"]
        assert prepare(options) == 0
        assert "2 training and 1 validation images of 6 classes drawn." in capsys.readouterr().out
        scene = draw_scene(SceneSpec(image_size=96, seed=5), "val", 0)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "set" / "val" / "000000.png")), scene.image)
        assert prepare(options) == 0
        assert "nothing to do" in capsys.readouterr().out

    def test_mistakes_give_one_message(self, prepare, tmp_path, capsys):
        assert prepare(["--output", str(tmp_path), "--max-object", "200"]) == 1
        assert capsys.readouterr().err.startswith("error: Sizes must satisfy")
        assert not any(tmp_path.iterdir())
