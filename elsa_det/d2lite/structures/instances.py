"""The objects of one image with whatever is known about them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class Instances:
    """A table: named fields of equal length, a row for each object.

    ``instances.scores = x`` sets a field and ``instances.scores`` reads it; ``instances[index]`` takes rows of all
    fields at once. Names that start with an underscore are ordinary attributes.

    Args:
        image_size: height and width of the image.
        **kwargs: fields.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})  # not there yet while a copy or pickle is being restored
        if name not in fields:
            raise AttributeError(f"Instances have no field {name!r}: there are {sorted(fields)}.")
        return fields[name]

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field.

        Raises:
            ValueError: it is not as long as the fields already there.
        """
        length = len(value)
        if self._fields and length != len(self):
            raise ValueError(f"Field {name!r} has {length} entries, but there are {len(self)} instances.")
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether there is a field of that name."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Drop a field."""
        del self._fields[name]

    def get(self, name: str) -> Any:
        """The field of that name.

        Raises:
            KeyError: there is none.
        """
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """All fields by name; changing this dict changes the instances."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """New instances with ``to`` called on every field that has it."""
        return self._with_fields(lambda value: value.to(*args, **kwargs) if hasattr(value, "to") else value)

    def _with_fields(self, make: Callable[[Any], Any]) -> Instances:
        """New instances with fields that ``make`` makes of these."""
        made = Instances(self._image_size)
        for name, value in self._fields.items():
            made.set(name, make(value))
        return made

    def __getitem__(self, item: int | slice | Tensor) -> Instances:
        """The rows ``item`` of every field; a number takes one row and keeps the table.

        Raises:
            IndexError: a number beyond the rows.
        """
        if type(item) is int:
            if not -len(self) <= item < len(self):
                raise IndexError(f"Instances[{item}]: there are only {len(self)} instances.")
            item = slice(item, item + 1 or None)
        return self._with_fields(operator.itemgetter(item))

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without a field have no length.")

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError("Instances cannot be iterated over: take instances[i], or iterate over a field.")

    @staticmethod
    def cat(instance_lists: Sequence[Instances]) -> Instances:
        """The rows of several instances of one image in one table; a list of one gives that one back.

        Raises:
            ValueError: there is nothing to concatenate, the image sizes differ, or a field is neither a tensor nor a
                list nor of a class with a ``cat``.
        """
        if len(instance_lists) == 0:
            raise ValueError("Instances.cat: there is nothing to concatenate.")
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        if any(other.image_size != first.image_size for other in instance_lists):
            sizes = [other.image_size for other in instance_lists]
            raise ValueError(f"Instances.cat: the instances must be of one image size, but they are of {sizes}.")
        together = Instances(first.image_size)
        for name in first._fields:
            together.set(name, _cat_values(name, [instances.get(name) for instances in instance_lists]))
        return together

    def __str__(self) -> str:
        height, width = self._image_size[0], self._image_size[1]
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        count = len(self) if self._fields else 0
        return f"Instances(num_instances={count}, image_height={height}, image_width={width}, fields=[{fields}])"

    __repr__ = __str__


def _cat_values(name: str, values: list[Any]) -> Any:
    kind = type(values[0])
    if issubclass(kind, Tensor):
        return torch.cat(values, dim=0)
    if issubclass(kind, list):
        return [entry for value in values for entry in value]
    if hasattr(kind, "cat"):
        return kind.cat(values)
    raise ValueError(f"Instances.cat cannot concatenate field {name!r} of type {kind.__name__}.")
