"""Hostile variants of files, each a function of its seed, so that a failure can be repeated."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

_LITERALS = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"0.5",
    b"-0",
    b"9" * 5000,
    b'"\xff\xfe"',
    b'"\\ud800"',
    b'"\x00"',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"[" * 400 + b"]" * 400,
    b'{"a":' * 950 + b"1" + b"}" * 950,
    b'{"a":1,"a":2}',
    b"",
)
"""What cannot be written from a value: text that is not JSON, or that few programs write."""

_VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    -(2**64),
    10**30,
    "",
    "a",
    "a" * 5000,
    "0" * 64,
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "scenes:",
    [],
    [None],
    {},
    {"": {}},
)

_LITERAL = "@literal@"


def damaged(content: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """A file with bits flipped, bytes overwritten, cut, left out or doubled, or another's end."""
    changed = bytearray(content)
    first, last = sorted(random.randrange(len(content) + 1) for _ in range(2))
    match random.randrange(7):
        case 0:
            for _ in range(random.randint(1, 4)):
                changed[random.randrange(len(content))] ^= 1 << random.randrange(8)
        case 1:
            length = random.randint(1, 32)
            changed[first : first + length] = random.randbytes(length)
        case 2:
            changed[first : first + 8] = random.choice((b"\xff", b"\x7f", b"\0", b"\x80")) * 8
        case 3:
            del changed[first:]
        case 4:
            del changed[first:last]
        case 5:
            changed[first:first] = changed[first:last][:4096]
        case 6:
            other = random.choice(others)
            changed[first:] = other[random.randrange(len(other) + 1) :]
    return bytes(changed)


def hostile_value(value: Any, random: Random) -> Any:
    """A JSON value in which one node is another, is gone, or lies elsewhere."""
    changed = copy.deepcopy(value)
    parents = list(_parents(changed))
    if not parents:
        return random.choice(_VALUES)
    parent, key = random.choice(parents)
    match random.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[str(random.choice(_VALUES))] = parent.pop(key)
        case 2:
            parent[key] = [parent[key]]
        case 3:
            other, other_key = random.choice(parents)
            parent[key] = copy.deepcopy(other[other_key])
        case 4:
            parent[key] = nested(random.choice((10, 100, 200, 300, 320, 330, 400, 480, 900)))
        case _:
            parent[key] = random.choice(_VALUES)
    return changed


def hostile_json(value: Any, random: Random) -> bytes:
    """JSON text of a hostile value, or text that is hardly JSON."""
    changed = hostile_value(value, random)
    parents = list(_parents(changed))
    if parents and random.random() < 0.5:
        parent, key = random.choice(parents)
        parent[key] = _LITERAL
    text = json.dumps(changed, separators=(",", ":"), sort_keys=random.random() < 0.8)
    return text.encode().replace(f'"{_LITERAL}"'.encode(), random.choice(_LITERALS))


def nested(depth: int) -> Any:
    """A list in a list, and so on."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _parents(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place in a JSON value: the list or object, and the index or key."""
    keys = (
        value.keys()
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    for key in keys:
        yield value, key
        yield from _parents(value[key])
