"""One path manager for every file that d2lite opens: local paths, http(s), ``detectron2://``."""

from __future__ import annotations

from typing import IO, Any

from iopath.common.file_io import HTTPURLHandler, PathHandler
from iopath.common.file_io import PathManager as _PathManager

__all__ = ["PathHandler", "PathManager"]

PathManager = _PathManager()
"""Our own instance, so that handlers registered here do not leak into other libraries."""


class Detectron2Handler(PathHandler):
    """``detectron2://path`` is a file of Detectron2's public model zoo."""

    PREFIX = "detectron2://"
    URL = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _url(self, path: str) -> str:
        return self.URL + path.removeprefix(self.PREFIX)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._url(path), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[str] | IO[bytes]:
        return PathManager.open(self._url(path), mode, buffering=buffering, **kwargs)


PathManager.register_handler(HTTPURLHandler())
PathManager.register_handler(Detectron2Handler())
