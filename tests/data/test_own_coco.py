"""Own COCO-format data: several files, shares of one, and classes that are read from the json."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from elsa_det import get_config
from elsa_det.benchmark.workload import class_count
from elsa_det.d2 import COCOEvaluator, DatasetCatalog, LazyConfig, MetadataCatalog, instantiate
from elsa_det.data import count_classes, own_coco, registered_coco
from elsa_det.engine.class_counts import settle_class_count
from elsa_det.errors import UserError

FRUITS = {1: "date", 2: "fig", 3: "nut"}


def write(folder, name, *, images, classes=FRUITS, first=1, of_class=None):
    """A json of ``images`` images with ids from ``first`` on, each with an object of every class in turn."""
    (folder / name).mkdir(exist_ok=True)
    ids = list(classes)
    content = {
        "images": [
            {"id": first + i, "file_name": f"{name}_{i}.png", "height": 40, "width": 60} for i in range(images)
        ],
        "annotations": [
            {
                "id": first + i, "image_id": first + i, "category_id": of_class or ids[i % len(ids)],
                "bbox": [i, 2, 10, 12], "area": 120, "iscrowd": 0,
            }
            for i in range(images)
        ],
        "categories": [{"id": i, "name": n} for i, n in classes.items()],
    }  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return {"json_file": str(path), "image_root": str(folder / name)}


def data(train=None, test=None, **more):
    nothing = {"name": None, "json_file": None, "image_root": None}
    return {"train": nothing | (train or {}), "test": nothing | (test or {}), **more}


def together(*groups):
    return {key: [group[key] for group in groups] for key in ("json_file", "image_root")}


def content_of(name):
    return json.loads(Path(MetadataCatalog.get(name).json_file).read_text())


def test_one_file_is_used_as_it_is(tmp_path):
    train, test = write(tmp_path, "a", images=3), write(tmp_path, "b", images=2)
    assert own_coco("train", data(train, test), str(tmp_path / "run")) == train["json_file"]
    assert own_coco("test", data(train, test), str(tmp_path / "run")) == test["json_file"]
    assert not (tmp_path / "run").exists()


def test_files_are_put_together(tmp_path):
    """Ids that clash are given anew, and classes go by their names, however a file numbers them."""
    a = write(tmp_path, "a", images=3)
    b = write(tmp_path, "b", images=2, classes={0: "nut", 5: "date", 7: "fig"})
    name = own_coco("train", data(together(a, b)), str(tmp_path / "run"))
    assert name == str(tmp_path / "run" / "train.json")
    entries = DatasetCatalog.get(name)
    assert MetadataCatalog.get(name).thing_classes == ["date", "fig", "nut"]
    assert [os.path.relpath(e["file_name"], tmp_path) for e in entries] == [
        "a/a_0.png", "a/a_1.png", "a/a_2.png", "b/b_0.png", "b/b_1.png",
    ]  # fmt: skip
    assert [e["annotations"][0]["category_id"] for e in entries] == [0, 1, 2, 2, 0]
    assert [e["annotations"][0]["bbox"][0] for e in entries] == [0, 1, 2, 0, 1]
    content = content_of(name)
    assert [image["id"] for image in content["images"]] == [a["id"] for a in content["annotations"]] == [1, 2, 3, 4, 5]
    assert [image["source_id"] for image in content["images"]] == [1, 2, 3, 1, 2]
    assert [source["json_file"] for source in content["info"]["sources"]] == [a["json_file"], b["json_file"]]


def test_ids_that_do_not_clash_stay_and_a_folder_serves_all(tmp_path):
    a, b = write(tmp_path, "a", images=2, first=10), write(tmp_path, "b", images=2, first=70)
    group = {"json_file": [a["json_file"], b["json_file"]], "image_root": str(tmp_path)}
    content = content_of(own_coco("train", data(group), str(tmp_path / "run")))
    assert [image["id"] for image in content["images"]] == [10, 11, 70, 71]
    assert [image["file_name"] for image in content["images"]] == ["a_0.png", "a_1.png", "b_0.png", "b_1.png"]


def test_test_data_take_the_numbers_of_the_training_classes(tmp_path):
    train = write(tmp_path, "a", images=3)
    test = write(tmp_path, "b", images=3, classes={1: "nut", 2: "date", 3: "fig"})
    name = own_coco("test", data(train, test), str(tmp_path / "run"))
    assert name == str(tmp_path / "run" / "test.json")
    assert [e["annotations"][0]["category_id"] for e in DatasetCatalog.get(name)] == [2, 0, 1]
    same_order = write(tmp_path, "c", images=3, classes={10: "date", 20: "fig", 30: "nut"})
    assert own_coco("test", data(train, same_order), str(tmp_path / "run")) == same_order["json_file"]


def test_a_share_is_kept_for_testing(tmp_path):
    train = write(tmp_path, "a", images=10)
    dataset = data(train, val_fraction=0.3, split_seed=5)
    parts = {part: content_of(own_coco(part, dataset, str(tmp_path / "run"))) for part in ("train", "test")}
    ids = {part: [image["id"] for image in content["images"]] for part, content in parts.items()}
    drawn = sorted(range(10), key=lambda i: hashlib.sha256(f"5:a_{i}.png".encode()).hexdigest())[:3]
    assert ids["test"] == [i + 1 for i in sorted(drawn)]
    assert ids["train"] == [i for i in range(1, 11) if i not in ids["test"]]
    for part, content in parts.items():
        assert [annotation["image_id"] for annotation in content["annotations"]] == ids[part]
        assert (content["info"]["part"], content["info"]["val_fraction"], content["info"]["split_seed"]) == (
            part,
            0.3,
            5,
        )

    others = [
        content_of(own_coco("test", dataset | {"split_seed": seed}, str(tmp_path / f"run{seed}"))) for seed in range(4)
    ]
    assert len({tuple(image["id"] for image in content["images"]) for content in others}) > 1


def test_a_part_is_written_once_for_each_state_of_its_data(tmp_path):
    train = write(tmp_path, "a", images=10)
    dataset, path = data(train, val_fraction=0.3), tmp_path / "run" / "test.json"
    own_coco("test", dataset, str(tmp_path / "run"))
    path.write_text("marked")
    own_coco("test", dataset, str(tmp_path / "run"))
    assert path.read_text() == "marked"
    own_coco("test", dataset | {"val_fraction": 0.4}, str(tmp_path / "run"))
    assert len(json.loads(path.read_text())["images"]) == 4
    write(tmp_path, "a", images=20)
    own_coco("test", dataset | {"val_fraction": 0.4}, str(tmp_path / "run"))
    assert len(json.loads(path.read_text())["images"]) == 8


def test_the_order_of_the_file_does_not_change_the_share(tmp_path):
    train = write(tmp_path, "a", images=10)
    dataset = data(train, val_fraction=0.4)
    before = content_of(own_coco("test", dataset, str(tmp_path / "one")))
    content = json.loads(Path(train["json_file"]).read_text())
    content["images"].reverse()
    Path(train["json_file"]).write_text(json.dumps(content))
    after = content_of(own_coco("test", dataset, str(tmp_path / "two")))
    assert {image["id"] for image in before["images"]} == {image["id"] for image in after["images"]}


def test_classes_that_a_part_lacks_are_reported(tmp_path, caplog):
    train = write(tmp_path, "a", images=4, of_class=2)
    own_coco("train", data(train, val_fraction=0.5), str(tmp_path / "run"))
    assert "The training part, 2 of 4 images, has no object of: date, nut" in caplog.text


def test_the_evaluator_reads_the_share(tmp_path):
    train = write(tmp_path, "a", images=10)
    name = own_coco("test", data(train, val_fraction=0.3), str(tmp_path / "run"))
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "out"))
    assert sorted(evaluator._coco_api.getImgIds()) == [e["image_id"] for e in DatasetCatalog.get(name)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "no data is named for test: .* or keep a share .* dataset.val_fraction=0.2"),
        ({"val_fraction": 1.5}, "dataset.val_fraction=1.5 is a share"),
        ({"val_fraction": 0.01}, "0.01 of 4 images leaves 0 for testing and 4 for training"),
        ({"val_fraction": 0.5, "test": {"name": "coco_2017_val"}}, "dataset.test.name=coco_2017_val names test data"),
        ({"val_fraction": 0.5, "train": {}}, "val_fraction=0.5 divides dataset.train.json_file, which is not set"),
        ({"test": {"json_file": "a.json"}}, r"needs both: got dataset.test.json_file=\['a.json'\]"),
        (
            {"test": {"json_file": ["a", "b", "c"], "image_root": ["d", "e"]}},
            "lists 3 files and .*image_root 2 folders",
        ),
        ({"test": {"json_file": ["a", "a"], "image_root": "d"}}, "json_file lists a twice"),
        ({"test": {"json_file": "gone.json", "image_root": "d"}}, "test.json_file=gone.json does not exist"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    dataset = data(write(tmp_path, "a", images=4)) | change
    with pytest.raises((UserError, FileNotFoundError), match=message):
        own_coco("test", dataset, str(tmp_path / "run"))


def test_other_classes_are_named(tmp_path):
    a = write(tmp_path, "a", images=3)
    b = write(tmp_path, "b", images=3, classes={1: "date", 2: "figs", 3: "nut"})
    with pytest.raises(UserError, match=r"b.json has other classes than .*a.json: it lacks 'fig' and has 'figs' more"):
        own_coco("train", data(together(a, b)), str(tmp_path / "run"))
    with pytest.raises(UserError, match="has other classes"):
        own_coco("test", data(a, b), str(tmp_path / "run"))


def test_the_same_image_twice_is_refused(tmp_path):
    a = write(tmp_path, "a", images=3)
    (tmp_path / "b.json").write_text(Path(a["json_file"]).read_text())
    group = {"json_file": [a["json_file"], str(tmp_path / "b.json")], "image_root": a["image_root"]}
    with pytest.raises(UserError, match=r"a/a_0.png is listed twice"):
        own_coco("train", data(group), str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("categories", "message"),
    [([{"id": 1}], "needs an integer 'id' and a 'name'"), ([{"id": 1, "name": "a"}] * 2, "share an id or a name")],
)
def test_bad_categories(tmp_path, categories, message):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    with pytest.raises(UserError, match=message):
        count_classes(data({"json_file": str(path), "image_root": str(tmp_path)}), without_data=80)


def test_several_files_belong_to_the_configs_of_own_data(tmp_path):
    with pytest.raises(UserError, match="several go together with the configs of own_data"):
        registered_coco(None, ["a.json", "b.json"], "images")  # type: ignore[arg-type]


def test_classes_are_counted(tmp_path):
    train = write(tmp_path, "a", images=2)
    assert count_classes(data(), without_data=80) == 80
    assert count_classes(data(train), without_data=80) == 3
    assert count_classes(data(test=train), without_data=80) == 3
    assert count_classes(data({"name": "coco_2017_train"}), without_data=7) == 80
    write(tmp_path, "a", images=2, classes=FRUITS | {4: "date palm"})  # the file changes
    assert count_classes(data(train), without_data=80) == 4


HEADS = {
    "elsa_t_mrcnn": ("roi_heads.num_classes", "roi_heads.box_predictor.num_classes", "roi_heads.mask_head.num_classes"),
    "elsa_nano_mrcnn": ("roi_heads.num_classes", "roi_heads.box_predictor.num_classes"),
    "elsa_t_cascade": ("roi_heads.num_classes", *(f"roi_heads.box_predictor.{i}.num_classes" for i in range(3))),
    "elsa_t_retinanet": ("num_classes", "head.num_classes"),
}


@pytest.mark.parametrize("name", HEADS)
def test_models_have_the_classes_of_the_json(tmp_path, name):
    train = write(tmp_path, "a", images=4)
    overrides = [f"dataset.train.{key}={value}" for key, value in train.items()]
    cfg = get_config(f"own_data/{name}", [*overrides, "dataset.val_fraction=0.25", f"train.output_dir={tmp_path}/run"])
    assert [instantiate(OmegaConf.select(cfg.model, key)) for key in HEADS[name]] == [3] * len(HEADS[name])
    assert class_count(cfg) == 3
    LazyConfig.save(cfg, str(tmp_path / "open.yaml"))
    assert count_in(tmp_path / "open.yaml", HEADS[name]) == [3] * len(HEADS[name])

    settle_class_count(cfg)
    LazyConfig.save(cfg, str(tmp_path / "settled.yaml"))
    Path(train["json_file"]).unlink()  # the saved config does not need it
    assert count_in(tmp_path / "settled.yaml", HEADS[name]) == [3] * len(HEADS[name])
    assert OmegaConf.select(LazyConfig.load(str(tmp_path / "settled.yaml")).model, HEADS[name][-1]) == 3


def count_in(path, keys):
    cfg = LazyConfig.load(str(path))
    return [instantiate(OmegaConf.select(cfg.model, key)) for key in keys]


def test_loaders_and_evaluator_of_the_configs_follow_the_data(tmp_path):
    train = write(tmp_path, "a", images=8)
    overrides = [f"dataset.train.{key}={value}" for key, value in train.items()]
    cfg = get_config(
        "own_data/elsa_t_mrcnn", [*overrides, "dataset.val_fraction=0.25", f"train.output_dir={tmp_path}/r"]
    )
    sizes = [len(instantiate(cfg.dataloader[loader].dataset)) for loader in ("train", "test")]
    assert sizes == [6, 2]
    assert instantiate(cfg.dataloader.evaluator.dataset_name) == f"{tmp_path}/r/data/test.json"
    with pytest.raises(UserError, match="a group of keys; 5 is a whole number"):
        get_config("own_data/elsa_t_mrcnn", ["model.roi_heads.num_classes=5"])
