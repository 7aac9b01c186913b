"""What is read from config files: keys, values, comments."""

from __future__ import annotations

import textwrap

from elsa_det.analysis.config_reference import explanation, flatten, read_comments, render_reference

SOURCE = """
# Of the whole.
train = dict(
    # Two lines
    # of comment.
    max_iter=10,
    ema=dict(enabled=False, decay=0.9),  # behind
    # Of the first on the line.
    a=1, b=2,
    blank=3,
)

train.later = 4  # behind, too
model = L(Model)(heads=[L(Head)(
    # In a list.
    width=7,
)])
model.neck.update(
    depth=2,  # by update
)
"""


def test_comments_belong_to_the_keys_that_they_stand_beside():
    assert read_comments(SOURCE) == {
        ("train",): "Of the whole.",
        ("train", "max_iter"): "Two lines of comment.",
        ("train", "ema"): "behind",
        ("train", "a"): "Of the first on the line.",
        ("train", "later"): "behind, too",
        ("model", "heads", "0", "width"): "In a list.",
        ("model", "neck", "depth"): "by update",
    }


def test_flatten_takes_groups_and_lists_of_groups_apart():
    node = {"model": {"_target_": "package.Model", "sizes": [[32], [64]], "heads": [{"_target_": len, "x": None}]}}
    assert list(flatten(node)) == [
        (("model",), "Model", True),
        (("model", "sizes"), [[32], [64]], False),
        (("model", "heads", "0"), "len", True),
        (("model", "heads", "0", "x"), None, False),
    ]


def test_the_first_pattern_that_fits_explains():
    explanations = {"train.*.metric": "one", "*.metric": "two"}
    assert explanation(("train", "best", "metric"), explanations) == "one"
    assert explanation(("other", "metric"), explanations) == "two"
    assert explanation(("train", "max_iter"), explanations) == ""


def test_a_file_that_changes_another_shows_what_differs(tmp_path):
    common = tmp_path / "common"
    files = {
        "train.py": '"""Runs."""\ntrain = dict(max_iter=10, seed=-1)\n',
        "optim.py": '"""Steps."""\noptimizer = dict(lr=0.5)\n',
        "data/coco.py": '"""Data."""\ndataset = dict(name="a", size=dict(train=[1, 2], crop=3))\n',
        "data/semantic_folders.py": '"""Maps."""\ndataset = dict(name=None)\n',
        "data/other.py": """
            \"\"\"Other data.\"\"\"
            from .coco import dataset
            dataset.name = "b"  # another
            dataset.size.pop("crop")
        """,
    }
    for name, text in files.items():
        path = common / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one.py").write_text('"""A run | of one."""\n')

    page = render_reference({"train.seed": "Of all."}, tmp_path)

    assert "| `train.max_iter` | `10` |  |\n| `train.seed` | `-1` | Of all. |\n" in page
    assert "| `dataset.size.train` | `[1, 2]` |  |" in page
    section = page[page.index("## `common/data/other.py`") : page.index("## Configs to run")]
    assert "As [`common/data/coco.py`](#commondatacocopy), but for:" in section
    assert [line for line in section.splitlines() if line.startswith("| `")] == ["| `dataset.name` | `b` | another |"]
    assert "Left out: `dataset.size.crop`." in section
    assert "| [`runs/one.py`](../configs/runs/one.py) | A run \\| of one. |" in page
