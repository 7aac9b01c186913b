"""Own data in LVIS's format: registered under the path of its json, with its own classes."""

from __future__ import annotations

import sys

import pytest
from lvis_files import lvis_content, needs_lvis, write_lvis

from elsa_det import d2
from elsa_det.d2 import DatasetCatalog, MetadataCatalog
from elsa_det.data import lvis, registered_lvis
from elsa_det.errors import UserError


@pytest.fixture
def made():
    """Names to forget after the test."""
    names: list[str] = []
    yield names
    for name in names:
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.pop(name, None)


@needs_lvis
def test_own_data_is_registered_once(tmp_path, made):
    json_file = write_lvis(tmp_path)
    name = registered_lvis("ignored", json_file, str(tmp_path))
    made.append(name)
    assert registered_lvis("ignored", json_file, str(tmp_path)) == name == json_file
    for _ in range(2):
        images = DatasetCatalog.get(name)
    assert images[1]["file_name"] == str(tmp_path / "val2017" / "000000000012.jpg")
    assert [ann["category_id"] for image in images for ann in image["annotations"]] == [0, 2, 0, 1, 1]
    meta = MetadataCatalog.get(name)
    assert meta.thing_classes == ["apple", "bow_(weapon)", "cup", "duck"]
    assert (meta.json_file, meta.image_root, meta.evaluator_type) == (json_file, str(tmp_path), "lvis")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="already registered with image_root"):
        registered_lvis(None, json_file, str(tmp_path / "other"))


@needs_lvis
def test_names_and_places(tmp_path):
    assert registered_lvis("lvis_v1_val") == "lvis_v1_val"
    with pytest.raises(UserError, match="'lvis_v9' is not registered. Known: .*lvis_v1_train"):
        registered_lvis("lvis_v9")
    with pytest.raises(FileNotFoundError, match="gone.json does not exist"):
        registered_lvis(None, str(tmp_path / "gone.json"), str(tmp_path))


@needs_lvis
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]}, r"ids are 1 to N, but these are \[0, 1\]"),
        ({"categories": [{"id": 1}]}, "not in LVIS's format: KeyError 'name'"),
        ({"images": [{"id": 5, "file_name": "5.jpg"}]}, "1 images, such as 5, have no 'coco_url'"),
    ],
)
def test_bad_files(tmp_path, made, change, message):
    name = registered_lvis(None, write_lvis(tmp_path, lvis_content(**change)), str(tmp_path))
    made.append(name)
    with pytest.raises(UserError, match=message):
        DatasetCatalog.get(name)


def test_a_package_that_does_not_run_is_told_before_work_starts(tmp_path, monkeypatch):
    (tmp_path / "old_lvis.py").write_text("class LVISEval:\n    def run(self):\n        np.float\n")
    (tmp_path / "new_lvis.py").write_text("class LVISEval:\n    def run(self):\n        np.float32\n")
    monkeypatch.syspath_prepend(tmp_path)
    import new_lvis
    import old_lvis

    monkeypatch.setattr(lvis, "PROVIDER", d2.UPSTREAM)
    monkeypatch.setitem(sys.modules, "lvis", old_lvis)
    with pytest.raises(UserError, match=r"'lvis' does not run on NumPy .*: pip install .*, or set ELSA_DET_D2=lite"):
        registered_lvis("lvis_v1_val")
    monkeypatch.setitem(sys.modules, "lvis", new_lvis)
    assert registered_lvis("lvis_v1_val") == "lvis_v1_val"
    monkeypatch.setattr(lvis.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package 'lvis' for LVIS: pip install"):
        registered_lvis("lvis_v1_val")
