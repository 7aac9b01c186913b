"""Which file ``--config-file`` means, in any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from elsa_det.config import config_root, find_config, load_config


@pytest.mark.parametrize("name", ["configs/coco/elsa_t_mrcnn_1x.py", "coco/elsa_t_mrcnn_1x.py"])
def test_an_installed_config_is_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == config_root() / "coco" / "elsa_t_mrcnn_1x.py"
    assert load_config(name, ["train.max_iter=7"]).train.max_iter == 7


def test_a_file_that_is_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = Path("configs/coco/elsa_t_mrcnn_1x.py")
    mine.parent.mkdir(parents=True)
    mine.write_text("own = dict(value=True)\n")
    assert find_config(str(mine)) == mine
    assert load_config(mine) == {"own": {"value": True}}


@pytest.mark.parametrize("name", ["configs/coco/gone.py", "coco", "configs"])
def test_neither_is_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"config file {name} does not exist \(looked for {tmp_path}"):
        find_config(name)


def test_an_absolute_path_means_itself(tmp_path):
    with pytest.raises(FileNotFoundError, match="looked for"):
        find_config(tmp_path / "coco" / "elsa_t_mrcnn_1x.py")
