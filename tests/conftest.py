"""What all tests share."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest
import setuptools  # noqa: F401  before anything imports distutils, which it replaces

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def operator_library(monkeypatch, tmp_path):
    """The operator's path not yet chosen, and a way to put another library and record in place of the real ones."""
    from elsa_det.ops import registration

    caches = (registration._decide, registration._warn_once)
    for cache in caches:
        cache.cache_clear()

    def install(library: bytes | None, record: dict | None):
        monkeypatch.setattr(registration, "_load_once", functools.cache(registration._load_once.__wrapped__))
        monkeypatch.setattr(registration, "LIBRARY", tmp_path / "_C.so")
        monkeypatch.setattr(registration, "RECORD", tmp_path / "_build_info.json")
        if library is not None:
            registration.LIBRARY.write_bytes(library)
        if record is not None:
            registration.RECORD.write_text(json.dumps(record))

    yield install
    for cache in caches:
        cache.cache_clear()
