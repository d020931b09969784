"""Files damaged at random, with a seed: bits, ends and stretches of bytes; values, keys and nesting
of JSON.

python -m tests.support.damaged_readers READER COUNT [SEED]     tries COUNT mutants of a reader of
`damaged_readers.READERS`
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

_NUMBERS = (0, -1, 1, 255, 2**31 - 1, 2**31, 2**63 - 1, 2**64 - 1)
_VALUES: tuple[str, ...] = (
    *(
        "null",
        "true",
        "false",
        "0",
        "-1",
        "1.5",
        "1e999",
        "-1e999",
        "NaN",
        "1e15",
        "1000000000",
        "9" * 400,
    ),
    *(
        '""',
        '"x"',
        r'"\u0000"',
        r'"\ud800"',
        r'"../../x"',
        '"/etc/passwd"',
        '"é文"',
        "[]",
        "{}",
        "[null]",
        "[[]]",
    ),
    *(
        '{"": null}',
        '{"content": 5}',
        "[" * 90 + "]" * 90,
        "[" * 5000 + "]" * 5000,
        '{"a":' * 200 + "1" + "}" * 200,
    ),
)
_SWAP = "\x01swap\x01"


def damaged_bytes(content: bytes, chance: random.Random) -> bytes:
    """The content with one to three faults.

    A bit, a byte, a cut, a hole, a doubled stretch, a number.
    """
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if not data:
            break
        at = chance.randrange(len(data))
        # Headers stand in front or at the end; there most can go wrong.
        if chance.random() < 0.5:
            at = (
                min(at, chance.randrange(1, 257))
                if chance.random() < 0.7
                else max(at, len(data) - 256)
            )
        kind = chance.randrange(7)
        size = min(len(data) - at, chance.choice((1, 4, 16, 64, 1000)))
        if kind <= 1:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            data[at] = chance.randrange(256)
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at : at + size] = bytes(size) if chance.random() < 0.5 else b"\xff" * size
        elif kind == 5:
            data[at:at] = data[at : at + size]
        else:
            width = chance.choice((4, 8))
            number = chance.choice(_NUMBERS) % 2 ** (8 * width)
            data[at : at + width] = number.to_bytes(width, "little")
    return bytes(data)


def damaged_json(content: bytes, chance: random.Random) -> bytes:
    """The JSON with one to three values replaced, or keys removed or renamed.

    Now and then its bytes damaged.
    """
    if chance.random() < 0.15:
        return damaged_bytes(content, chance)
    values = json.loads(content)
    texts: list[str] = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        holders = list(_holders(values))
        if not holders:
            break
        holder = chance.choice(holders)
        key = chance.choice(list(holder) if isinstance(holder, dict) else list(range(len(holder))))
        kind = chance.random()
        if kind < 0.7:
            holder[key] = f"{_SWAP}{len(texts)}"
            texts.append(chance.choice(_VALUES))
        elif kind < 0.85:
            del holder[key]
        elif isinstance(holder, dict):
            holder[chance.choice(("", "x", "-1", "0", "99999999999", "content", "model_type"))] = (
                holder.pop(key)
            )
        else:
            holder *= 2
    if chance.random() < 0.02:
        return chance.choice(_VALUES).encode()
    text = json.dumps(values)
    for number, value in enumerate(texts):
        text = text.replace(json.dumps(f"{_SWAP}{number}"), value, 1)
    return text.encode()


def _holders(values: Any) -> Iterator[Any]:
    """All objects and arrays that hold something."""
    waiting = [values]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict | list) and each:
            yield each
            waiting += each.values() if isinstance(each, dict) else each
