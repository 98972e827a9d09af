"""Damage: bytes that flip, vanish or repeat, and values of JSON and YAML that nobody expects. Everything follows from the seed."""

import copy
import json
import random
import sys

import yaml

DEEP = 200_000
ODD = [None, True, -1, 0, 2**63, 10**400, 1e308, float("nan"), "", "x", "7", "/dev/zero", "/etc/passwd", "../../up", "\u009b31m\u202e\x1b[2J", [], {}, [[]], {"a": 1}]


def bytes_of(content, rng):
    """One damaged copy, and what was done to it."""
    at = rng.randrange(len(content)) if content else 0
    length = rng.choice([1, 4, 64, 4096])
    deed = rng.choice(["flip", "flips", "cut", "empty", "splice", "zero", "drop", "append", "nest"])
    if deed == "flip":
        return deed, _flipped(content, [at], rng)
    if deed == "flips":
        return deed, _flipped(content, [rng.randrange(max(1, len(content))) for _ in range(16)], rng)
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


def _flipped(content, places, rng):
    damaged = bytearray(content)
    for at in places[: len(content)]:
        damaged[at] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def value_of(value, rng):
    """One JSON value with one entry replaced, removed, added or moved, and what was done."""
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
        holder["unheard_of"] = rng.choice(ODD)
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


def json_of(content, rng, seal=lambda value: value):
    """A JSON text with an odd value, sealed anew; or with a key twice."""
    value = json.loads(content)
    deed, changed = value_of(value, rng)
    return deed, json.dumps(seal(changed), ensure_ascii=False).encode("utf-8", "surrogatepass")


def yaml_of(content, rng):
    """A YAML text with an odd value, an alias bomb, a section twice, or a tag that would run code."""
    deed = rng.choice(["value", "value", "value", "bomb", "twice", "tag"])
    if deed == "value":
        deed, changed = value_of(yaml.safe_load(content), rng)
        return deed, _dumped(changed)
    if deed == "bomb":
        levels = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 25))
        return deed, content + b"\nl0: &l0 [x]\n" + levels.encode() + b"\n"
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


def generator(*words):
    """A random generator of its own for each kind and number."""
    return random.Random("/".join(map(str, words)))
