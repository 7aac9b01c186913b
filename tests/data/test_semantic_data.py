"""Segmentation datasets: what label files mean, how folders pair up, and what is said about bad ones."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elsa_det.d2 import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from elsa_det.d2 import transforms as T
from elsa_det.data import SemanticMapper, registered_semantic
from elsa_det.data.semantic import LabelEncoding, label_encoding, read_labels
from elsa_det.data.semantic.ade20k import ADE20K_CLASSES, register_ade20k, write_prepared_labels
from elsa_det.data.semantic.cityscapes import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_ENCODING,
    CITYSCAPES_THING_CLASSES,
    load_cityscapes_instances,
    load_cityscapes_semantic,
)
from elsa_det.data.semantic.colors import class_colors
from elsa_det.data.semantic.folders import class_names_from
from elsa_det.data.semantic.labels import plain_encoding, zero_ignored_encoding
from elsa_det.data.semantic.voc import VOC_CLASSES, register_voc, voc_color
from elsa_det.errors import UserError

GRID = np.arange(12, dtype=np.uint8).reshape(3, 4)


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return str(path)


def photo(path: Path, height: int = 3, width: int = 4, seed: int = 0) -> str:
    return save(path, np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def forget():
    """Datasets that a test registers are taken out again."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def forget_by_prefix(prefix):
    for name in [name for name in DatasetCatalog.list() if name.startswith(prefix)]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


class TestEncoding:
    def test_plain(self):
        encoding = plain_encoding(12)
        np.testing.assert_array_equal(encoding.decode(GRID), GRID)
        assert encoding.decode(GRID).dtype == np.uint8
        np.testing.assert_array_equal(encoding.decode(np.array([[255, 3]])), [[255, 3]])

    def test_zero_is_ignored_and_classes_count_from_one(self):
        labels = zero_ignored_encoding(150).decode(np.array([[0, 1], [150, 255]]))
        np.testing.assert_array_equal(labels, [[255, 0], [149, 255]])

    def test_written_and_read_back(self):
        encoding = LabelEncoding((7, 3, 300), (0,), ignore_label=255)
        labels = np.array([[0, 1, 2], [2, 1, 0]])
        stored = encoding.encode(labels)
        np.testing.assert_array_equal(stored, [[7, 3, 300], [300, 3, 7]])
        assert stored.dtype == np.uint16
        np.testing.assert_array_equal(encoding.decode(stored), labels)

    def test_many_classes_need_more_bits(self):
        encoding = plain_encoding(400, ignore_label=65535)
        labels = encoding.decode(np.array([[399, 65535]]))
        np.testing.assert_array_equal(labels, [[399, 65535]])
        assert labels.dtype == np.int32

    def test_contradictions_are_refused(self):
        with pytest.raises(UserError, match=r"values \[255\] stand for two things.*ignore_label outside"):
            plain_encoding(256)
        with pytest.raises(UserError, match="ignore_label=3 is the index of a class"):
            LabelEncoding((1, 2, 3, 4), (0,), ignore_label=3)
        with pytest.raises(UserError, match="at least one class"):
            plain_encoding(0)


class TestReading:
    def test_palette_files_count_as_indices(self, tmp_path):
        image = Image.fromarray(GRID, mode="P")
        image.putpalette([200, 100, 50] * 256)
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_labels(tmp_path / "a.png", plain_encoding(12)), GRID)

    def test_sixteen_bits_are_read_whole(self, tmp_path):
        pixels = np.array([[0, 300], [299, 65535]], dtype=np.uint16)
        path = save(tmp_path / "a.png", pixels)
        np.testing.assert_array_equal(read_labels(path, plain_encoding(301, 65535)), pixels)
        with pytest.raises(UserError, match=r"a\.png has 2 pixels of the values \[299, 300\].*instance ids"):
            read_labels(path, LabelEncoding((0, 1), (65535,)))

    def test_values_beyond_the_classes(self, tmp_path):
        path = save(tmp_path / "a.png", GRID)
        with pytest.raises(
            UserError, match=r"a\.png has 2 pixels of the values \[10, 11\], the first at row, column \(2, 2\)"
        ):
            read_labels(path, plain_encoding(10))
        with pytest.raises(UserError, match=r"10 classes, stored as 0\.\.9.*set dataset\.num_classes"):
            read_labels(path, plain_encoding(10))
        with pytest.raises(UserError, match="set dataset.reduce_zero_label=True"):
            read_labels(path, plain_encoding(11))

    def test_colours_instead_of_indices(self, tmp_path):
        path = save(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
        with pytest.raises(UserError, match=r"a\.png has the pixel format RGB, colours rather than class indices"):
            read_labels(path, plain_encoding(2))

    def test_size_of_the_image(self, tmp_path):
        path = save(tmp_path / "a.png", GRID)
        with pytest.raises(UserError, match=r"a\.png is 4×3 pixels.*its image b\.jpg is 5×3"):
            read_labels(path, plain_encoding(12), size=(3, 5), image="b.jpg")

    def test_truncated_and_absent(self, tmp_path):
        path = Path(save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 12, (90, 90), dtype=np.uint8)))
        path.write_bytes(path.read_bytes()[:600])
        with pytest.raises(UserError, match=r"a\.png cannot be read: .*truncated"):
            read_labels(path, plain_encoding(12))
        with pytest.raises(FileNotFoundError, match=r"b\.png does not exist"):
            read_labels(tmp_path / "b.png", plain_encoding(12))


@pytest.fixture
def folders(tmp_path, forget):
    for seed, name in enumerate(("x/a", "b")):
        photo(tmp_path / "images" / f"{name}.jpg", seed=seed)
        save(tmp_path / "labels" / f"{name}.png", GRID % 3)
    return str(tmp_path / "images"), str(tmp_path / "labels")


class TestFolders:
    def test_pairs_by_name(self, folders):
        images, labels = folders
        name = registered_semantic("ignored", images, labels, num_classes=3)
        assert registered_semantic(None, images, labels, num_classes=3) == name
        assert DatasetCatalog.get(name) == [
            {"file_name": f"{images}/b.jpg", "sem_seg_file_name": f"{labels}/b.png"},
            {"file_name": f"{images}/x/a.jpg", "sem_seg_file_name": f"{labels}/x/a.png"},
        ]
        metadata = MetadataCatalog.get(name)
        assert metadata.stuff_classes == ["class 0", "class 1", "class 2"]
        assert len(set(metadata.stuff_colors)) == 3
        assert (metadata.ignore_label, label_encoding(name)) == (255, plain_encoding(3))

    def test_names_from_files(self, folders, tmp_path):
        (tmp_path / "names.txt").write_text("sky\n\nroad \ntree\n")
        (tmp_path / "names.json").write_text(json.dumps(["sky", "road", "tree"]))
        for file in ("names.txt", "names.json"):
            assert class_names_from(str(tmp_path / file), None) == ["sky", "road", "tree"]
        assert class_names_from("elsa_ade20k_val", 150) == list(ADE20K_CLASSES)
        name = registered_semantic(None, *folders, classes=str(tmp_path / "names.txt"))
        assert MetadataCatalog.get(name).stuff_classes == ["sky", "road", "tree"]
        with pytest.raises(UserError, match=r"names 3 classes, dataset.num_classes is 5: set dataset.num_classes=3"):
            class_names_from(str(tmp_path / "names.json"), 5)
        with pytest.raises(FileNotFoundError, match="dataset.classes=gone.txt"):
            class_names_from("gone.txt", None)
        with pytest.raises(UserError, match="set dataset.num_classes=N"):
            registered_semantic(None, *folders)

    def test_missing_partners_are_counted_both_ways(self, folders, tmp_path):
        for name in ("c", "d", "e", "f"):
            photo(tmp_path / "images" / f"{name}.jpg")
        save(tmp_path / "labels" / "x" / "z.png", GRID)
        with pytest.raises(
            UserError,
            match=r"6 images and .* 3 label maps.*4 images without a label map \(c, d, e, …\); "
            r"1 label maps without an image \(x/z\)",
        ):
            registered_semantic(None, *folders, num_classes=3)

    def test_bad_places_are_named(self, folders, tmp_path):
        with pytest.raises(UserError, match="needs both"):
            registered_semantic(None, folders[0])
        with pytest.raises(FileNotFoundError, match="label_root=gone is not a folder"):
            registered_semantic(None, folders[0], "gone", num_classes=2)
        with pytest.raises(UserError, match="'nothing' is not registered. Known: .*elsa_ade20k_train"):
            registered_semantic("nothing")
        with pytest.raises(UserError, match="set dataset.train.image_root"):
            registered_semantic(None)
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="there are 2 images .* and 0 label maps"):
            registered_semantic(None, folders[0], str(tmp_path / "empty"), num_classes=2)
        registered_semantic(None, *folders, num_classes=3)
        with pytest.raises(UserError, match="already registered with"):
            registered_semantic(None, *folders, num_classes=4)
        with pytest.raises(UserError, match="no classes for semantic segmentation"):
            label_encoding("coco_2017_val")

    def test_a_name_twice(self, folders, tmp_path):
        photo(tmp_path / "images" / "b.png")
        with pytest.raises(UserError, match="share their name"):
            registered_semantic(None, *folders, num_classes=3)


class TestMapper:
    def test_training(self, folders):
        name = registered_semantic(None, *folders, num_classes=3)
        mapper = SemanticMapper(name, is_train=True, augmentations=[T.RandomFlip(prob=1.0)])
        given = DatasetCatalog.get(name)[0]
        mapped = mapper(given)
        assert "height" not in given
        pixels = np.asarray(Image.open(given["file_name"]))
        np.testing.assert_array_equal(mapped["image"].numpy(), pixels[:, ::-1].transpose(2, 0, 1))
        assert (mapped["image"].dtype, mapped["sem_seg"].dtype) == (torch.uint8, torch.int64)
        np.testing.assert_array_equal(mapped["sem_seg"].numpy(), (GRID % 3)[:, ::-1])
        assert (mapped["height"], mapped["width"]) == (3, 4)
        assert "sem_seg_file_name" not in mapped

    def test_testing_leaves_labels_to_the_evaluator(self, folders):
        name = registered_semantic(None, *folders, num_classes=3)
        mapper = SemanticMapper([name], is_train=False, augmentations=[T.Resize((6, 8))], image_format="BGR")
        given = DatasetCatalog.get(name)[0]
        mapped = mapper(given)
        assert mapped["image"].shape == (3, 6, 8)
        assert (mapped["height"], mapped["width"]) == (3, 4)
        assert mapped["sem_seg_file_name"] == given["sem_seg_file_name"]
        assert "sem_seg" not in mapped

    def test_bad_files(self, folders, tmp_path):
        name = registered_semantic(None, *folders, num_classes=3)
        mapper = SemanticMapper(name, is_train=True, augmentations=[])
        good = DatasetCatalog.get(name)[0]
        large = photo(tmp_path / "large.png", 64, 64)
        with pytest.raises(UserError, match=r"b\.png is 4×3 pixels .* its image .*large\.png is 64×64"):
            mapper({**good, "file_name": large})
        Path(large).write_bytes(Path(large).read_bytes()[:400])
        with pytest.raises(UserError, match=r"image .*large\.png cannot be read: .*[Tt]runcated"):
            mapper({**good, "file_name": large})
        with pytest.raises(UserError, match="has no label map"):
            mapper({"file_name": good["file_name"]})
        with pytest.raises(UserError, match="is 4×3 pixels .* its dataset says 9×3"):
            mapper({**good, "height": 3, "width": 9})

    def test_in_a_loader(self, folders):
        name = registered_semantic(None, *folders, num_classes=3)
        loader = build_detection_train_loader(
            DatasetCatalog.get(name),
            mapper=SemanticMapper(name, is_train=True, augmentations=[]),
            total_batch_size=2,
            aspect_ratio_grouping=False,
        )
        batch = next(iter(loader))
        assert [entry["sem_seg"].shape for entry in batch] == [(3, 4), (3, 4)]

    def test_datasets_of_different_labels_do_not_mix(self):
        with pytest.raises(UserError, match="encode their labels differently"):
            SemanticMapper(["elsa_ade20k_val", "elsa_ade20k_prepared_val"], is_train=False, augmentations=[])


@pytest.fixture
def ade20k(tmp_path, monkeypatch):
    root = tmp_path / "ADEChallengeData2016"
    values = np.array([[0, 1, 2, 150], [0, 0, 77, 78], [5, 5, 5, 5]], dtype=np.uint8)
    for split, names in (("training", ("ADE_train_00000001",)), ("validation", ("ADE_val_00000001",))):
        for name in names:
            photo(root / "images" / split / f"{name}.jpg")
            save(root / "annotations" / split / f"{name}.png", values)
    forget_by_prefix("elsa_ade20k")
    register_ade20k(tmp_path)
    yield root
    forget_by_prefix("elsa_ade20k")
    register_ade20k("datasets")


def prepare(arguments):
    path = Path(__file__).parents[2] / "datasets" / "prepare_ade20k.py"
    spec = importlib.util.spec_from_file_location("prepare_ade20k", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(arguments)


class TestADE20K:
    def test_classes(self):
        assert (len(ADE20K_CLASSES), len(set(ADE20K_CLASSES))) == (150, 150)
        assert (ADE20K_CLASSES[0], ADE20K_CLASSES[12], ADE20K_CLASSES[149]) == ("wall", "person", "flag")

    def test_as_published_and_prepared_give_the_same(self, ade20k, capsys):
        with pytest.raises(FileNotFoundError, match=r"run datasets/prepare_ade20k\.py"):
            DatasetCatalog.get("elsa_ade20k_prepared_train")
        assert prepare(["--root", str(ade20k)]) == 0
        assert "2 label maps written" in capsys.readouterr().out
        samples = []
        for name in ("elsa_ade20k_train", "elsa_ade20k_prepared_train"):
            mapper = SemanticMapper(name, is_train=True, augmentations=[])
            samples.append(mapper(DatasetCatalog.get(name)[0]))
        assert torch.equal(samples[0]["sem_seg"], samples[1]["sem_seg"])
        assert samples[0]["sem_seg"].tolist() == [[255, 0, 1, 149], [255, 255, 76, 77], [4, 4, 4, 4]]
        assert torch.equal(samples[0]["image"], samples[1]["image"])

    def test_prepared_files(self, ade20k):
        calls = []
        assert write_prepared_labels(ade20k, progress=lambda *done: calls.append(done)) == 2
        assert calls == [(1, 2), (2, 2)]
        written = Image.open(ade20k / "annotations_detectron2" / "training" / "ADE_train_00000001.png")
        assert written.mode == "L"
        np.testing.assert_array_equal(np.asarray(written)[0], [255, 0, 1, 149])

    def test_mistakes(self, ade20k, capsys, tmp_path):
        assert prepare(["--root", str(tmp_path / "gone")]) == 1
        assert "error: there are no label maps in" in capsys.readouterr().err
        save(ade20k / "annotations" / "training" / "x.png", np.full((2, 2), 151, np.uint8))
        assert prepare(["--root", str(ade20k)]) == 1
        assert "x.png has 4 pixels of the values [151]" in capsys.readouterr().err


def cityscapes_frame(root: Path, name: str = "aachen_000000_000019", height: int = 40, width: int = 60):
    """A frame with a road, two cars, a group of persons and what does not count; gives (images, labels) folders."""
    city = name.split("_")[0]
    labels, instances = np.full((height, width), 7, np.uint8), np.full((height, width), 7, np.uint16)
    for value, rows, columns in ((26000, (2, 20), (2, 30)), (26001, (20, 38), (5, 40)), (24, (2, 18), (40, 58))):
        labels[slice(*rows), slice(*columns)] = value // 1000 if value > 1000 else value
        instances[slice(*rows), slice(*columns)] = value
    labels[0], instances[0] = 4, 4  # "static", which does not count
    images, truths = root / "leftImg8bit" / "val", root / "gtFine" / "val"
    photo(images / city / f"{name}_leftImg8bit.png", height, width)
    save(truths / city / f"{name}_gtFine_labelIds.png", labels)
    save(truths / city / f"{name}_gtFine_instanceIds.png", instances)
    return str(images), str(truths)


class TestCityscapes:
    def test_classes(self):
        assert len(CITYSCAPES_CLASSES) == 19
        assert (CITYSCAPES_CLASSES[0], CITYSCAPES_CLASSES[13], CITYSCAPES_CLASSES[18]) == ("road", "car", "bicycle")
        assert CITYSCAPES_THING_CLASSES == (
            "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
        )  # fmt: skip

    def test_ids_become_train_ids(self, tmp_path):
        (record,) = load_cityscapes_semantic(*cityscapes_frame(tmp_path))
        labels = read_labels(record["sem_seg_file_name"], CITYSCAPES_ENCODING)
        assert (labels[0, 0], labels[1, 0], labels[5, 5], labels[5, 50]) == (255, 0, 13, 11)
        stored = CITYSCAPES_ENCODING.encode(np.array([[0, 13, 18]]))
        np.testing.assert_array_equal(stored, [[7, 26, 33]])

    def test_instances(self, tmp_path):
        from pycocotools import mask as coco_mask

        (record,) = load_cityscapes_instances(*cityscapes_frame(tmp_path))
        assert (record["height"], record["width"], record["image_id"]) == (40, 60, "aachen_000000_000019")
        found = [(a["category_id"], a["bbox"], a["iscrowd"]) for a in record["annotations"]]
        assert found == [(0, [40, 2, 58, 18], 1), (2, [2, 2, 30, 20], 0), (2, [5, 20, 40, 38], 0)]
        assert coco_mask.area(record["annotations"][1]["segmentation"]) == 18 * 28

    def test_instances_train_a_detector(self, tmp_path):
        """Groups are left out, masks survive a flip."""
        (record,) = load_cityscapes_instances(*cityscapes_frame(tmp_path))
        mapper = DatasetMapper(
            is_train=True,
            augmentations=[T.RandomFlip(prob=1.0)],
            image_format="RGB",
            use_instance_mask=True,
            recompute_boxes=True,
            instance_mask_format="bitmask",
        )
        instances = mapper(record)["instances"]
        assert instances.gt_classes.tolist() == [2, 2]
        assert instances.gt_masks.tensor.sum(dim=(1, 2)).tolist() == [18 * 28, 18 * 35]
        assert instances.gt_boxes.tensor.tolist() == [[30, 2, 58, 20], [20, 20, 55, 38]]

    def test_missing_files(self, tmp_path):
        images, labels = cityscapes_frame(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"unpack leftImg8bit_trainvaltest\.zip"):
            load_cityscapes_semantic(images, str(tmp_path / "gone"))
        photo(Path(images) / "aachen" / "aachen_000001_000019_leftImg8bit.png")
        with pytest.raises(UserError, match="1 images without a label map"):
            load_cityscapes_instances(images, labels)


class TestVOC:
    @pytest.fixture
    def root(self, tmp_path):
        root = tmp_path / "VOCdevkit" / "VOC2012"
        for name in ("2007_000032", "2007_000039", "2007_000063"):
            photo(root / "JPEGImages" / f"{name}.jpg")
        for name in ("2007_000032", "2007_000039"):
            image = Image.fromarray(np.array([[0, 20, 255, 1]] * 3, np.uint8), mode="P")
            image.putpalette([value for index in range(256) for value in voc_color(index)])
            (root / "SegmentationClass").mkdir(exist_ok=True)
            image.save(root / "SegmentationClass" / f"{name}.png")
        (root / "ImageSets" / "Segmentation").mkdir(parents=True)
        (root / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000032\n2007_000039\n")
        forget_by_prefix("elsa_voc")
        register_voc(tmp_path)
        yield root
        forget_by_prefix("elsa_voc")
        register_voc("datasets")

    def test_listed_images_with_borders_ignored(self, root):
        records = DatasetCatalog.get("elsa_voc_2012_train")
        assert [Path(record["file_name"]).stem for record in records] == ["2007_000032", "2007_000039"]
        mapped = SemanticMapper("elsa_voc_2012_train", is_train=True, augmentations=[])(records[0])
        assert mapped["sem_seg"][0].tolist() == [0, 20, 255, 1]
        with pytest.raises(FileNotFoundError, match=r"elsa_voc_2012_val: there is no .*val\.txt"):
            DatasetCatalog.get("elsa_voc_2012_val")

    def test_listed_but_not_there(self, root):
        listing = root / "ImageSets" / "Segmentation" / "train.txt"
        listing.write_text("2007_000032\n2007_000063\n")
        with pytest.raises(UserError, match=r"1 images without a label map \(2007_000063\)"):
            DatasetCatalog.get("elsa_voc_2012_train")
        listing.write_text("2007_000032\n2099_000001\n")
        with pytest.raises(UserError, match=r"1 of which \(2099_000001\) have neither"):
            DatasetCatalog.get("elsa_voc_2012_train")

    def test_classes_and_colours(self):
        assert (len(VOC_CLASSES), VOC_CLASSES[15]) == (21, "person")
        # of the development kit: person, tvmonitor, void
        assert [voc_color(index) for index in (0, 1, 15, 20, 255)] == [
            (0, 0, 0), (128, 0, 0), (192, 128, 128), (0, 64, 128), (224, 224, 192),
        ]  # fmt: skip


def test_made_up_colours_are_distinct_and_stay():
    colors = class_colors(200)
    assert len(set(colors)) == 200
    assert class_colors(7) == colors[:7]
    assert all(0 <= value <= 255 for color in colors for value in color)
