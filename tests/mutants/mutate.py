"""Damage: bytes that flip, vanish or repeat, values that nobody expects, members that are no arrays. Everything follows
from the seed."""

import copy
import gzip
import io
import json
import os
import pickle
import random
import sys
import zipfile

import numpy as np
import yaml

DEEP = 200_000
ESCAPES = "\u009b31m\u202e\x1b[2J"
ODD = [
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    1e308,
    float("nan"),
    "",
    "x",
    "7",
    "/dev/zero",
    "/etc/passwd",
    "../../up",
    ESCAPES,
    [],
    {},
    [[]],
    {"a": 1},
]
HUGE = 4 << 30  # bytes; more than a reader may take
ODD_FILES = {
    "no file": lambda path: None,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": lambda path: os.mkfifo(path),
    "a directory": lambda path: path.mkdir(),
    "4 GiB": lambda path: (path.touch(), os.truncate(path, HUGE)),
}
"""What may stand where a file is wanted."""


def bytes_of(content, rng):
    """One damaged copy, and what was done to it."""
    at = _place(content, rng)
    length = rng.choice([1, 4, 64, 4096])
    deed = rng.choice(["flip", "flips", "cut", "empty", "splice", "zero", "drop", "append", "nest"])
    if deed == "flip":
        return deed, _flipped(content, [at], rng)
    if deed == "flips":
        return deed, _flipped(content, [_place(content, rng) for _ in range(16)], rng)
    if deed == "nest":
        return deed, rng.choice([b"[", b'{"a":']) * DEEP
    changed = {
        "cut": content[:at],
        "empty": b"",
        "splice": content[:at] + content[at : at + length] * 2 + content[at + length :],
        "zero": content[:at] + bytes(len(content[at : at + length])) + content[at + length :],
        "drop": content[:at] + content[at + length :],
        "append": content + bytes(rng.randrange(256) for _ in range(length)),
    }
    return deed, changed[deed]


def _place(content, rng):
    """A place in the content, more often one that holds something than one in the zeros of an empty page."""
    at = 0
    for _ in range(200 if content else 0):
        at = rng.randrange(len(content))
        if content[at] or rng.random() < 0.005:
            break
    return at


def _flipped(content, places, rng):
    damaged = bytearray(content)
    for at in places[: len(content)]:
        damaged[at] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def value_of(value, rng):
    """One JSON value with one entry replaced, removed, added or nested, and what was done."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    holder, key = rng.choice(places) if places else (None, None)
    if holder is None:
        return "replaced", rng.choice(ODD)
    deed = rng.choice(["replaced", "replaced", "replaced", "removed", "added", "deep"])
    if deed == "replaced":
        holder[key] = rng.choice(ODD)
    elif deed == "removed":
        del holder[key]
    elif deed == "added" and isinstance(holder, dict):
        holder[rng.choice(["unheard_of", ESCAPES])] = rng.choice(ODD)
    else:
        holder[key] = _deep(500)
    return f"{deed} at {key!r}", value


def _places(value):
    """Every (container, key) below a value."""
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from _places(below)


def _deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def _json(value, **options):
    return json.dumps(value, ensure_ascii=False, **options).encode("utf-8", "surrogatepass")


def json_of(content, rng, seal=lambda value: value):
    """A JSON text with an odd value, sealed anew; or with a key twice."""
    value = json.loads(content)
    if rng.random() < 0.1 and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        return "twice", _json(value)[:-1] + b", " + _json({key: value[key]})[1:]
    deed, changed = value_of(value, rng)
    return deed, _json(seal(changed))


def lines_of(content, rng):
    """JSON lines of which one has an odd value."""
    lines = content.split(b"\n")
    at = rng.choice([number for number, line in enumerate(lines) if line])
    deed, lines[at] = json_of(lines[at], rng)
    return deed, b"\n".join(lines)


def yaml_of(content, rng):
    """A YAML text with an odd value, an alias bomb, a section twice, or a tag that would run code."""
    deed = rng.choice(["value", "value", "value", "bomb", "twice", "tag", "deep"])
    if deed == "value":
        deed, changed = value_of(yaml.safe_load(content), rng)
        return deed, _dumped(changed)
    if deed == "bomb":
        levels = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 25))
        return deed, content + b"\nl0: &l0 [x]\n" + levels.encode() + b"\n"
    if deed == "deep":
        return deed, content + b"\nextra: " + b"[" * 2000
    if deed == "twice":
        return deed, content + b"\n" + content
    return deed, content + b"\nextra: !!python/object/apply:os.system ['exit 3']\n"


def _dumped(value):
    """YAML of a value of any depth; PyYAML takes several frames for each level."""
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        return yaml.safe_dump(value).encode()
    finally:
        sys.setrecursionlimit(usual)


def safetensors_of(content, rng):
    """A safetensors file whose header has an odd value, overlaps, holes, a name twice or bytes behind its last
    tensor."""
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), content[start:]
    name = rng.choice([key for key in header if key != "__metadata__"])
    deed = rng.choice(["value", "value", "overlap", "hole", "twice", "trailing", "length"])
    if deed == "overlap":  # with another tensor of its size, if there is one
        alike = [key for key in header if key != name and header[key].get("shape") == header[name]["shape"]]
        header[alike[0] if alike else "again"] = header[name]
    elif deed == "hole":
        del header[name]
    elif deed == "trailing":
        data += bytes(8)
    elif deed == "value":
        deed, header = value_of(header, rng)
    text = _json(header)
    if deed == "twice":
        text = text[:-1] + b", " + _json({name: header[name]})[1:]
    length = rng.choice([0, 1 << 62, len(text) + len(data) + 1]) if deed == "length" else len(text)
    return deed, length.to_bytes(8, "little") + text + data


def npz_of(content, rng):
    """A .npz archive with a member that is missing, twice, no array, of another type or shape, or larger than it
    says."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    array = np.load(io.BytesIO(members[name]))
    deeds = {
        "missing": lambda: None,
        "twice": lambda: members[name],
        "objects": lambda: _npy(np.array([{}, print], object), allow_pickle=True),
        "pickle": lambda: pickle.dumps(print),
        "text": lambda: b"no array",
        "type": lambda: _npy(np.zeros(array.shape, rng.choice(["<U3", "?", "<c16", ">f4", "<i1", "S2"]))),
        "fields": lambda: _npy(np.zeros(array.shape, [("a", "<i4"), ("b", "<f4")])),
        "values": lambda: _npy(
            np.full_like(array, rng.choice([np.nan, np.inf, -1, 2**31]) if array.dtype.kind == "f" else 0)
        ),
        "rank": lambda: _npy(array[None]),
        "empty": lambda: _npy(array.reshape(-1)[:0]),
        "shape": (
            lambda: members[name].replace(
                b"'shape': (",
                rng.choice([b"'shape': (99999999999, ", b"'shape': (-1, ", b"'shape': (True, ", b"'shape': ((((("]),
                1,
            )
        ),
        "bomb": lambda: _npy(np.zeros(1 << 27, np.uint8)),
    }
    deed = rng.choice(list(deeds))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other, value in members.items():
            if deed != "missing" or other != name:
                with np.errstate(all="ignore"):
                    archive.writestr(other, deeds[deed]() if other == name else value)
        if deed == "twice":
            archive.writestr(name, members[name])
    return deed, made.getvalue()


def _npy(array, allow_pickle=False):
    made = io.BytesIO()
    np.save(made, array, allow_pickle=allow_pickle)
    return made.getvalue()


def gzip_of(content, rng):
    """A .gz file of damaged content, two of them, one that is cut off, or a bomb."""
    deed = rng.choice(["content", "content", "members", "cut", "bomb"])
    text = gzip.decompress(content)
    if deed == "content":
        deed, text = bytes_of(text, rng)
        return deed, gzip.compress(text)
    if deed == "bomb":
        return deed, gzip.compress(bytes(300 << 20), 1)
    return deed, content[:-5] if deed == "cut" else content + content


def reformatted(content, form):
    """The same in another form, which a reader must take; None where there is none."""
    if form in ("json", "sealed"):
        return _json(json.loads(content), indent=1)
    if form == "lines":
        return b"\n".join(
            _json(json.loads(line), separators=(",", ":")) if line else line for line in content.split(b"\n")
        )
    if form == "yaml":
        return b"# in other words\n" + content
    if form == "safetensors":
        start = 8 + int.from_bytes(content[:8], "little")
        return (start + 8).to_bytes(8, "little") + content[8:start] + b" " * 16 + content[start:]
    if form == "npz":
        made = io.BytesIO()
        with np.load(io.BytesIO(content)) as archive:
            np.savez_compressed(made, **archive)
        return made.getvalue()
    return gzip.compress(gzip.decompress(content), 1) if form == "gz" else None


DAMAGES = {
    "bytes": bytes_of,
    "json": json_of,
    "sealed": json_of,
    "lines": lines_of,
    "yaml": yaml_of,
    "safetensors": safetensors_of,
    "npz": npz_of,
    "gz": gzip_of,
}


NEVER = {
    "safetensors": {"overlap", "hole", "twice", "trailing", "length"},
    "npz": {"twice", "objects", "pickle", "text", "fields", "shape", "bomb"},
    "yaml": {"bomb", "deep", "twice", "tag"},
    "json": {"twice"},
    "sealed": {"twice"},
}
"""What no reader may take: the reference libraries refuse it, readers differ in what they make of it, or it runs code
or has no end."""


def generator(*words):
    """A random generator of its own for each kind and number."""
    return random.Random("/".join(map(str, words)))
