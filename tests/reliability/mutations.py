"""Damages of files as disks, transfers and people make them, and of text also as liars do."""

from __future__ import annotations

import random
import re

NUMBERS = (b"-1", b"0", b"1e999", b"NaN", b"1000000000", b"99999999999999999999", b"null", b"true", b'""', b"[]", b"{}")


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A copy with one damage."""
    data = bytearray(content or b" ")
    chance.choice(DAMAGES)(data, chance.randrange(len(data)), chance)
    return bytes(data)


def _bit(data: bytearray, place: int, chance: random.Random) -> None:
    data[place] ^= 1 << chance.randrange(8)


def _byte(data: bytearray, place: int, chance: random.Random) -> None:
    data[place] = chance.randrange(256)


def _cut(data: bytearray, place: int, chance: random.Random) -> None:
    del data[place:]


def _gap(data: bytearray, place: int, chance: random.Random) -> None:
    del data[place : place + chance.randrange(1, 16)]


def _more(data: bytearray, place: int, chance: random.Random) -> None:
    data[place:place] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 9)))


def _zeros(data: bytearray, place: int, chance: random.Random) -> None:
    data[place : place + 32] = bytes(len(data[place : place + 32]))


def _header(data: bytearray, place: int, chance: random.Random) -> None:
    data[place % 64 % len(data)] ^= 1 << chance.randrange(8)


def _directory_at_the_end(data: bytearray, place: int, chance: random.Random) -> None:
    data[-1 - place % 64 % len(data)] ^= 1 << chance.randrange(8)


def _block_twice(data: bytearray, place: int, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    data[place:place] = data[start : start + chance.randrange(1, 200)]


def _number(data: bytearray, place: int, chance: random.Random) -> None:
    """Another value in the place of a number in text."""
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", bytes(data)))
    if numbers:
        number = chance.choice(numbers)
        data[number.start() : number.end()] = chance.choice(NUMBERS)


DAMAGES = (_bit, _bit, _byte, _cut, _gap, _more, _zeros, _header, _directory_at_the_end, _block_twice, _number, _number)
