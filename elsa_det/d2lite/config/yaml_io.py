"""Configs as YAML with the ``python/…`` tags that Detectron2 writes, read without running what they name.

Detectron2 reads its saved configs with ``yaml.unsafe_load``. Here a tag is followed only if it names something that
is harmless to look up or to build: functions and classes of packages we trust are looked up but not called,
dataclasses and enums of Detectron2 and elsa_det are built, and so are a few plain values of the standard library.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml
from yaml.constructor import ConstructorError

from ..utils.registry import _convert_target_to_string, locate, to_public_name
from .trusted import NotTrusted, find_trusted

_BUILDING_PACKAGES = ("detectron2", "elsa_det")
_LARGEST = 200_000  # values; the largest configs of the toolkit have some hundred
_TAG = "tag:yaml.org,2002:python/"


def dump_yaml(value: Any) -> str:
    """YAML for plain containers and the objects in them; d2lite's objects go by Detectron2's names."""
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=None, allow_unicode=True, width=9999)


def load_yaml(text: str | bytes, locate: Callable[[str], Any] = locate) -> Any:
    """What :func:`dump_yaml` or Detectron2 wrote.

    Args:
        text: the file's content.
        locate: from a dotted name to its object; by default Detectron2's names give d2lite's objects.

    Raises:
        yaml.YAMLError: it is not YAML, has a tag that is not allowed, or is nested too deeply.
    """
    try:
        loader = _Loader(text)
    except ValueError as error:  # not text, in a way that PyYAML does not expect
        raise yaml.YAMLError(str(error)) from error
    loader.locate = locate
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, TypeError, OverflowError, LookupError, AttributeError) as error:
        # PyYAML makes numbers and dates of what looks like them, and trips where it only looks so
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error
    finally:
        loader.dispose()


def _check_size(root: yaml.Node) -> None:
    """Raise if the document, with everything that ``*alias`` repeats, is larger than any config."""
    sizes: dict[int, int | None] = {}  # None: being counted

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            known = sizes[id(node)]
            if known is None:
                raise ConstructorError(None, None, "it refers to itself", node.start_mark)
            return known
        sizes[id(node)] = None
        total = 1
        if isinstance(node, yaml.SequenceNode):
            total += sum(map(size, node.value))
        elif isinstance(node, yaml.MappingNode):
            total += sum(size(key) + size(value) for key, value in node.value)
        sizes[id(node)] = total
        return total

    if size(root) > _LARGEST:
        raise ConstructorError(None, None, f"its aliases unfold to more than {_LARGEST:,} values", root.start_mark)


class _Dumper(yaml.Dumper):
    def represent_scalar(self, tag: str, value: Any, style: Any = None) -> yaml.ScalarNode:
        return super().represent_scalar(_public_tag(tag), value, style=style)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: Any = None) -> yaml.SequenceNode:
        return super().represent_sequence(_public_tag(tag), sequence, flow_style=flow_style)

    def represent_mapping(self, tag: str, mapping: Any, flow_style: Any = None) -> yaml.MappingNode:
        return super().represent_mapping(_public_tag(tag), mapping, flow_style=flow_style)


def _public_tag(tag: str) -> str:
    kind, _, name = tag.removeprefix(_TAG).partition(":")
    if not tag.startswith(_TAG) or to_public_name(name) == name:
        return tag
    return f"{_TAG}{kind}:{_convert_target_to_string(locate(name))}"


_Dumper.add_multi_representer(np.generic, lambda dumper, value: dumper.represent_data(value.item()))


class _Loader(yaml.SafeLoader):
    locate: Callable[[str], Any]

    def fail(self, node: yaml.Node, what: str) -> ConstructorError:
        return ConstructorError(None, None, f"{node.tag.removeprefix('tag:yaml.org,2002:')}: {what}", node.start_mark)

    def find(self, name: str, node: yaml.Node) -> Any:
        """The function or class called ``name``, if it is one that files may name."""
        try:
            return find_trusted(name, self.locate)
        except (NotTrusted, ImportError) as error:
            raise self.fail(node, str(error)) from error

    def construct_instance(self, name: str, node: yaml.Node) -> Any:
        """``python/object``: a dataclass from its fields."""
        kind = self.find(name, node) if name.partition(".")[0] in _BUILDING_PACKAGES else None
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(node, yaml.MappingNode)):
            raise self.fail(node, "only dataclasses of Detectron2 and elsa_det are built")
        try:
            return kind(**self.construct_mapping(node, deep=True))
        except (TypeError, ValueError) as error:
            raise self.fail(node, str(error)) from error

    def construct_call(self, name: str, node: yaml.Node) -> Any:
        """``python/object/apply``: enums, and values of the standard library that pickle as a call."""
        state: Any
        if isinstance(node, yaml.SequenceNode):
            args, state = self.construct_sequence(node, deep=True), ()
        elif isinstance(node, yaml.MappingNode):
            parts = self.construct_mapping(node, deep=True)
            args, state = parts.get("args", []), parts.get("state", ())
            if not isinstance(args, (list, tuple)):
                raise self.fail(node, "'args' is no list")
        else:
            raise self.fail(node, "neither a list of arguments nor a mapping")
        try:
            if name == "functools.partial":
                if not isinstance(state, (list, tuple)):
                    raise self.fail(node, "'state' is no list")
                function, args, keywords, *_ = state
                if not (callable(function) and isinstance(args, (list, tuple)) and isinstance(keywords, dict)):
                    raise self.fail(node, "'state' is not a function with its arguments")
                return functools.partial(function, *args, **keywords)
            if name in _CALLS:
                if any(isinstance(arg, range) for arg in args):  # a few letters that unfold to any number of values
                    raise self.fail(node, "a range is not made a collection")
                return _CALLS[name](*args)
            if name.partition(".")[0] in _BUILDING_PACKAGES:
                kind = self.find(name, node)
                if isinstance(kind, type) and issubclass(kind, enum.Enum):
                    return kind(*args)
        except (TypeError, ValueError) as error:
            raise self.fail(node, str(error)) from error
        raise self.fail(node, "calls in a config are not made, but for enums and plain values")


_CALLS: dict[str, Any] = {
    "builtins.range": range,
    "builtins.slice": slice,
    "builtins.frozenset": frozenset,
    "builtins.set": set,
    "collections.OrderedDict": collections.OrderedDict,
}
for _module in ("pathlib", "pathlib._local"):  # the second is Python 3.13's
    for _kind in ("Path", "PosixPath", "WindowsPath"):
        _CALLS[f"{_module}.{_kind}"] = pathlib.Path
    for _pure in (pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath):
        _CALLS[f"{_module}.{_pure.__name__}"] = _pure

_Loader.add_multi_constructor(f"{_TAG}name:", lambda loader, name, node: loader.find(name, node))
_Loader.add_multi_constructor(f"{_TAG}object:", lambda loader, name, node: loader.construct_instance(name, node))
_Loader.add_multi_constructor(f"{_TAG}object/apply:", lambda loader, name, node: loader.construct_call(name, node))
_Loader.add_constructor(f"{_TAG}tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))
_Loader.add_constructor(f"{_TAG}complex", lambda loader, node: complex(loader.construct_scalar(node)))
for _plain, _as in {
    "str": "str",
    "unicode": "str",
    "int": "int",
    "long": "int",
    "float": "float",
    "bool": "bool",
}.items():
    _Loader.add_constructor(f"{_TAG}{_plain}", getattr(_Loader, f"construct_yaml_{_as}"))
