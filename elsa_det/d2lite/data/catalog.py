"""The two global catalogs: how a dataset is loaded, and what is known about it."""

from __future__ import annotations

import copy
import logging
import types
from collections import UserDict
from collections.abc import Callable
from typing import Any

from ..utils.logger import log_first_n

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _Catalog(UserDict):
    """What both catalogs share: listing, removal and a short text form."""

    _what = "entries"

    def list(self) -> list[str]:
        """The registered names, in order of registration."""
        return [*self.keys()]

    def remove(self, name: str) -> None:
        """Forget ``name``.

        Raises:
            KeyError: if it is not there.
        """
        del self[name]

    def __repr__(self) -> str:
        return f"{type(self).__name__.lstrip('_')}({self._what}: {', '.join(self)})"

    __str__ = __repr__


class _DatasetCatalog(_Catalog):
    """Maps the name of a dataset to a function that loads it.

    The function takes no argument and gives a list of dicts in the standard dataset format (or a torch dataset), the
    same one whenever it is called.
    """

    _what = "registered datasets"

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Make ``name`` stand for the dataset that ``func()`` loads.

        Raises:
            TypeError: if ``func`` cannot be called.
            ValueError: if the name is taken.
        """
        if not callable(func):
            raise TypeError(
                f"DatasetCatalog.register({name!r}, …) needs a function that loads the dataset, got {func!r}. "
                "Wrap the data: lambda: my_list_of_dicts."
            )
        if name in self:
            raise ValueError(
                f"Dataset {name!r} is already registered. Choose another name, or call "
                f"DatasetCatalog.remove({name!r}) and MetadataCatalog.remove({name!r}) first."
            )
        self[name] = func

    def get(self, name: str) -> Any:  # type: ignore[override]
        """Load the dataset of this name.

        Raises:
            KeyError: if it is not registered; the message names what is.
        """
        if name not in self:
            raise KeyError(
                f"Dataset {name!r} is not registered. Available datasets: {', '.join(self) or 'none'}. "
                "Register it (DatasetCatalog.register, register_coco_instances) before it is used."
            )
        return self[name]()


class Metadata(types.SimpleNamespace):
    """Facts about a dataset (class names, colours, paths), each of which is set once.

    Setting an attribute again to an equal value is fine; setting it to another value is an error, because everything
    that asked before would be wrong.
    """

    name: str = "N/A"  # so that error messages never look the name up through __getattr__

    _RENAMED = {
        "class_names": "thing_classes",
        "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
        "stuff_class_names": "stuff_classes",
    }

    @classmethod
    def _current_key(cls, key: str) -> str:
        """The present name of an attribute that had another one long ago."""
        if key not in cls._RENAMED:
            return key
        log_first_n(logging.WARNING, f"Metadata '{key}' is called '{cls._RENAMED[key]}' now.", n=10)
        return cls._RENAMED[key]

    def __getattr__(self, key: str) -> Any:
        if key in self._RENAMED:
            return getattr(self, self._current_key(key))
        known = [k for k in self.__dict__ if k != "name"]
        has = f"it has {', '.join(known)}" if known else "it is empty"
        raise AttributeError(f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}': {has}.")

    def __setattr__(self, key: str, val: Any) -> None:
        key = self._current_key(key)
        if key in self.__dict__ and self.__dict__[key] != val:
            raise ValueError(
                f"Attribute '{key}' in the metadata of dataset '{self.name}' is set already and cannot become another "
                f"value: {self.__dict__[key]!r} != {val!r}. Register the other data under a name of its own."
            )
        super().__setattr__(key, val)

    def as_dict(self) -> dict[str, Any]:
        """A shallow copy of all attributes."""
        return copy.copy(self.__dict__)

    def set(self, **kwargs: Any) -> Metadata:
        """Set several attributes; gives itself back."""
        for key, val in kwargs.items():
            setattr(self, key, val)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute, or ``default`` where there is none."""
        return getattr(self, key, default)


class _MetadataCatalog(_Catalog):
    """Maps the name of a dataset to its one :class:`Metadata`, which comes into being when first asked for."""

    _what = "registered metadata"

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """The metadata of this name, empty if it is new.

        Raises:
            ValueError: if the name is empty.
        """
        if not name:
            raise ValueError("MetadataCatalog.get needs the name of a dataset, got an empty one.")
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
