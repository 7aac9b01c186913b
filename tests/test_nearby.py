"""What a message says of the place where a file is not."""

from __future__ import annotations

from elsa_det.nearby import looked_for


def test_files_of_the_same_ending_are_named_the_most_alike_first(tmp_path):
    for name in ("instances_val.json", "instances_train.json", "train.txt"):
        (tmp_path / name).touch()
    found = looked_for(tmp_path / "train.json")
    assert found == f"(looked for {tmp_path}/train.json; there are: instances_train.json, instances_val.json)"


def test_many_are_counted(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.json").touch()
    assert looked_for(tmp_path / "9.json").endswith("; there are: 0.json, 1.json, 2.json, 3.json, 4.json and 3 more)")


def test_nothing_alike(tmp_path, monkeypatch):
    (tmp_path / "a.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert looked_for("b.json") == f"(looked for {tmp_path}/b.json)"


def test_a_folder_that_is_missing(tmp_path):
    found = looked_for(tmp_path / "gone" / "further" / "a.json")
    assert found.endswith(f"a.json; its folder is not there, the path goes as far as {tmp_path})")
