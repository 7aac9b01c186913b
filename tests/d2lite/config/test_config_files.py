"""Config files in Python: loading, relative imports, and what ``detectron2`` is to them."""

from __future__ import annotations

import sys
import textwrap

import pytest

from elsa_det import d2
from elsa_det.d2 import LazyConfig, instantiate
from elsa_det.d2lite.config import LazyConfig as LiteConfig


@pytest.fixture
def tree(tmp_path):
    """Write config files by name; dotted folders are no packages."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return tmp_path

    return write


def test_load(tree):
    folder = tree(
        common__optim="""
            from detectron2.config import LazyCall as L
            import torch
            AdamW = L(torch.optim.AdamW)(lr=1e-4)
            """,
        common__data__coco="dataloader = dict(train=dict(batch=16))\nruns = []",
        coco__leaf="""
            from collections import Counter
            from ..common.optim import AdamW as optimizer
            from ..common.data.coco import dataloader, runs
            from .sibling import number

            runs.append(1)
            optimizer.lr *= 2
            dataloader.train.batch //= 2
            train = dict(max_iter=number)
            _hidden = dict(a=1)
            """,
        coco__sibling="number = 90000",
    )
    path = str(folder / "coco" / "leaf.py")
    for _ in range(2):  # what the first load changed is not seen by the second
        config = LazyConfig.load(path)
        assert set(config) == {"optimizer", "dataloader", "train"}
        assert config.optimizer.lr == 2e-4
        assert config.dataloader.train.batch == 8
        assert config.train.max_iter == 90000
        config.optimizer.lr = 7
    train, runs = LazyConfig.load(path, ("train", "runs"))
    assert train.max_iter == 90000
    assert runs == [1]
    assert LazyConfig.load(path, "_hidden").a == 1
    with pytest.raises(KeyError, match="model"):
        LazyConfig.load(path, "model")


def test_detectron2_in_a_config_is_the_provider(tree):
    folder = tree(
        model="""
            import detectron2
            import detectron2.data.transforms as T
            from detectron2.config import LazyCall as L, instantiate
            from detectron2.layers import ShapeSpec
            from detectron2.modeling.backbone import fpn
            from .neck import neck
            model = dict(
                shape=L(ShapeSpec)(channels=3), pool=L(fpn.LastLevelMaxPool)(), neck=neck,
                version=detectron2.__version__, flip=L(T.RandomFlip)(),
                evaluator=L("detectron2.evaluation.COCOEvaluator")(dataset_name="x"),
            )
            """,
        neck="""
            from detectron2.config import LazyCall as L
            from detectron2.modeling.backbone.fpn import LastLevelMaxPool
            neck = L(LastLevelMaxPool)()
            """,
    )
    before = set(sys.modules)
    model = LazyConfig.load(str(folder / "model.py")).model
    assert model.neck._target_ is d2.LastLevelMaxPool
    assert model.pool._target_ is d2.LastLevelMaxPool
    assert model.flip._target_ is d2.transforms.RandomFlip
    assert model.version == d2.PROVIDER_VERSION
    assert instantiate(model.shape) == d2.ShapeSpec(channels=3)
    if d2.PROVIDER == d2.LITE:
        assert not [name for name in set(sys.modules) - before if name.split(".")[0] == "detectron2"]


def test_load_rel(tree):
    folder = tree(
        outer="""
            from detectron2.config import LazyConfig
            model = LazyConfig.load_rel("./sub/odd-name.py", "model")
            """,
        **{"sub__odd-name": "model = dict(depth=50)"},
    )
    assert LazyConfig.load(str(folder / "outer.py")).model.depth == 50
    with pytest.raises((ValueError, AssertionError), match="load_rel"):
        eval(compile("LazyConfig.load_rel('a.py')", "<string>", "eval"), {"LazyConfig": LazyConfig})


def test_relative_to_the_working_directory(tree, monkeypatch):
    folder = tree(a__leaf="from ..top import x\nfrom .beside import y", top="x = dict(n=1)", a__beside="y = dict(n=2)")
    monkeypatch.chdir(folder)
    assert LazyConfig.load("a/leaf.py") == {"x": {"n": 1}, "y": {"n": 2}}
    monkeypatch.chdir(folder / "a")
    assert LazyConfig.load("../a/leaf.py").y.n == 2


def test_wrong_files(tree):
    folder = tree(broken="model = (", ok="x = {}")
    for path in (folder / "nothing.py", folder / "nothing.yaml"):
        with pytest.raises(FileNotFoundError, match="nothing"):
            LazyConfig.load(str(path))
    with pytest.raises(ValueError, match=r"ok\.txt"):
        LazyConfig.load(str(folder / "ok.txt"))
    with pytest.raises(SyntaxError) as caught:
        LazyConfig.load(str(folder / "broken.py"))
    assert "broken.py" in str(caught.value) + str(caught.value.filename)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("from .missing import x", r"missing\.py does not exist"),
        ("from . import other", "relative import can only import"),
        ("from .folder import other", "relative import can only import"),
    ],
)
def test_bad_relative_imports(tree, statement, message):
    folder = tree(leaf=statement, other="x = {}", folder__other="x = {}")
    with pytest.raises(ImportError, match=message):
        LazyConfig.load(str(folder / "leaf.py"))


def test_lite_names_what_a_config_does_not_define(tree):
    folder = tree(leaf="from .other import y", other="x = {}", a="from .b import x", b="from .a import x")
    with pytest.raises(ImportError, match=r"other\.py does not define 'y'"):
        LiteConfig.load(str(folder / "leaf.py"))
    with pytest.raises(ImportError, match=r"circle: .*a\.py -> .*b\.py -> .*a\.py"):
        LiteConfig.load(str(folder / "a.py"))


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("from detectron2.modeling import NoSuchHead", "detectron2.modeling.NoSuchHead"),
        ("from detectron2.config import LazyCall, get_cfg", "detectron2.config.get_cfg"),
        ("from detectron2 import model_zoo", "detectron2.model_zoo"),
        ("import detectron2.projects.point_rend", "detectron2.projects.point_rend"),
    ],
)
def test_lite_says_what_it_lacks(tree, statement, name):
    folder = tree(leaf=statement)
    before = {key for key in sys.modules if key.split(".")[0] == "detectron2"}
    with pytest.raises(ImportError, match=f"'{name}' is not part of d2lite.*The real Detectron2 has it"):
        LiteConfig.load(str(folder / "leaf.py"))
    assert {key for key in sys.modules if key.split(".")[0] == "detectron2"} == before


def test_lite_redirects_only_the_config_and_only_while_it_runs(tree, monkeypatch):
    from elsa_det.d2lite.structures import Boxes

    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)  # so that importing it elsewhere fails
    folder = tree(
        leaf="""
            from detectron2.structures import Boxes
            def later():
                from detectron2.structures import Boxes
            config = dict(first=Boxes)
            from a_helper_of_the_config import found
            """,
        a_helper_of_the_config="""
            try:
                import detectron2
                found = dict(detectron2=True)
            except ImportError:
                found = dict(detectron2=False)
            """,
    )
    monkeypatch.syspath_prepend(folder)
    first, later, found = LiteConfig.load(str(folder / "leaf.py"), ("config", "later", "found"))
    assert first.first is Boxes
    assert not found.detectron2
    with pytest.raises(ImportError):
        later()
    with pytest.raises(ImportError):
        import detectron2  # noqa: F401
    monkeypatch.delitem(sys.modules, "a_helper_of_the_config")


def test_the_config_files_own_language(tree):
    # annotations stay objects, and the file's text is UTF-8, whatever the loader uses
    folder = tree(leaf="def f(x: int): ...\nkind = f.__annotations__['x']\ntext = dict(name='Ünïcödé')")
    assert LazyConfig.load(str(folder / "leaf.py"), "kind") is int
    assert LazyConfig.load(str(folder / "leaf.py")).text.name == "Ünïcödé"
