"""Seeded changes to valid samples: of bytes, of json, of yaml lines, of pickles and archives."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Sequence
from typing import Any

_ODD_BYTES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xff\xff\xff\x7f", b"-1",
b"1e999",
              b"9" * 30, b"NaN", b'"', b"{", b"]", b"\n", b"${", b"\xf0\x9f\x90\x88", b"\xed\xa0\x80")  # fmt: skip


def change_bytes(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """One to six changes in places drawn at random; sometimes a part of another sample is put in."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(made) + 1)
        way = rng.randrange(7)
        if way == 0 and made:
            made[at % len(made)] ^= 1 << rng.randrange(8)
        elif way == 1 and made:
            made[at % len(made)] = rng.randrange(256)
        elif way == 2:
            made[at:at] = rng.choice(_ODD_BYTES)
        elif way == 3:
            del made[at : at + rng.choice((1, 2, 4, 16, 64))]
        elif way == 4:
            part = made[at : at + rng.choice((1, 4, 16, 64))]
            made[at:at] = part * rng.choice((1, 2, 5))
        elif way == 5:
            del made[at:]
        else:
            other = rng.choice(others) if others else bytes(made)
            start = rng.randrange(len(other) + 1)
            part = other[start : start + rng.choice((4, 16, 64))]
            made[at : at + len(part)] = part
    return bytes(made)


_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, -0.5, 1e308, float("inf"), float("-inf"), float("nan"), 2**31, 2**63, 10**400,
    "", "x", "../../etc/passwd", "/etc/passwd", "a\0b", "x" * 5000, "\ud800", [], {}, [[]], [{}], [1], [None], ["x"],
    {"x": 1}, {"size": [2, 2], "counts": "0"}, {"size": [1e9, 1e9], "counts": [1]}, [[1, 2, 3, 4, 5, 6]], [1, 2, 3, 4],
    {"counts": "\x7f" * 50, "size": [60, 80]}, {"size": [60, 80], "counts": [0, 4800]},
)  # fmt: skip


def change_json(rng: random.Random, data: bytes) -> bytes:
    """A value put in place of another, a key left out or renamed, an entry twice."""
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = _place(rng, content)
        if place is None:
            break
        holder, key = place
        way = rng.randrange(6)
        if way <= 2:
            holder[key] = rng.choice(_ODD_VALUES)
        elif way == 3:
            del holder[key]
        elif way == 4:
            other, other_key = _place(rng, content) or place
            holder[key] = json.loads(json.dumps(other[other_key]))
        elif isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[rng.choice(("id", "image_id", "bbox", "x", ""))] = holder.pop(key)
    if rng.random() < 0.01:
        deep = rng.choice((50, 5000))
        return b'{"images": ' + b"[" * deep + b"]" * deep + b', "categories": [1]}'
    return json.dumps(content).encode()


def _place(rng: random.Random, node: Any) -> tuple[Any, Any] | None:
    """A holder and the key of one of its values, any number of levels down."""
    place = None
    while isinstance(node, (dict, list)) and node and (place is None or rng.random() < 0.7):
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        place, node = (node, key), node[key]
    return place


def change_lines(rng: random.Random, data: bytes, values: Sequence[str]) -> bytes:
    """Lines of YAML left out, twice, indented otherwise, or with another value after their key."""
    lines = data.decode().split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, way = rng.randrange(len(lines)), rng.randrange(6)
        if way <= 2:
            key = lines[at].partition(":")[0] if rng.random() < 0.9 else "odd"
            lines[at] = f"{key}: {rng.choice(values)}"
        elif way == 3 and len(lines) > 1:
            del lines[at]
        elif way == 4:
            lines.insert(at, rng.choice(lines))
        else:
            lines[at] = rng.choice(("  ", " ", "- ", "? ", "")) + lines[at].lstrip()
    return "\n".join(lines).encode()


_OPCODES = (
    b"0", b"1", b"2", b"(", b".", b"N", b"]", b"}", b")", b"a", b"b", b"d", b"e", b"l", b"o", b"p1\n", b"R", b"s", b"t",
    b"u", b"\x81", b"\x85", b"\x86", b"\x87", b"\x88", b"\x90", b"\x91", b"\x92", b"\x93", b"\x94", b"q\x01", b"h\x00",
    b"h\x01", b"h\x05", b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"K\x01", b"J\xff\xff\xff\xff", b"I01\n", b"I99\n",
    b"L" + b"9" * 20 + b"L\n", b"G\x7f\xf0\0\0\0\0\0\0", b"X\x04\0\0\0abcd", b"X\xff\xff\xff\xff", b"B\xff\xff\xff\x7f",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x96\0\0\0\0\0\0\1\0",
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy._core.multiarray\nscalar\n", b"c_codecs\nencode\n",
    b"cnumpy.core.numeric\n_frombuffer\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
    b"cargparse\nNamespace\n", b"i__main__\nx\n", b"P1\n", b"Q", b"\x82\x01", b"\x8a\x02\xff\x7f",
    b"\x8b\xff\xff\xff\xff",
)  # fmt: skip


def change_pickle(rng: random.Random, data: bytes) -> bytes:
    """Opcodes put in, in place of others, or left out, most of them where opcodes begin."""
    begins = _opcodes(data)
    made = data
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.choice(begins) if begins and rng.random() < 0.8 else rng.randrange(len(made) + 1)
        end = at + rng.choice((0, 0, 1, 2))
        made = made[:at] + rng.choice(_OPCODES) * rng.choice((1, 1, 1, 3)) + made[end:]
    return change_bytes(rng, made) if rng.random() < 0.2 else made


def _opcodes(data: bytes) -> list[int]:
    import pickletools

    found = []
    try:
        for _, _, at in pickletools.genops(data):
            found.append(at or 0)
    except (ValueError, pickle.UnpicklingError, IndexError):
        pass
    return found


def change_archive(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """An archive whose pickle, or another of its files, is changed and which is whole otherwise."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in files if name.endswith("data.pkl"))
    if rng.random() < 0.75:
        files[pickled] = change_pickle(rng, files[pickled])
    else:
        name = rng.choice(list(files))
        if rng.random() < 0.3:
            del files[name]
        else:
            files[name] = change_bytes(rng, files[name], others)
    written = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(written, "w", how) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return written.getvalue()
