"""The members of the object that a JSON file is, found without parsing them; and their parsing, one at a time.

A file of any size is cut at the boundaries of its outermost object's members in one sequential pass: quotes and
braces are all that is looked at, strings and escapes are respected, and the text itself is read again by whoever
parses the member. A file is valid JSON if and only if the cuts succeed and every member parses; NaN and Infinity, which
Python's ``json`` writes, count as valid.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forceuq.errors import DataError

BLOCK = 4 * 2**20
# A member is parsed in memory, at several times its size in the file.
LARGEST_MEMBER = 128 * 2**20
_QUOTE, _BACKSLASH, _OPEN, _CLOSE = b'"\\{}'
_KEY = re.compile(rb'[ \t\n\r]*(,?)[ \t\n\r]*("(?:[^"\\]|\\.)*")[ \t\n\r]*:[ \t\n\r]*')
_LONGEST_KEY = 2**16
# Shifts by which the parity of a word's bits up to each is found, and that of its last bit.
_DOUBLING = tuple(np.uint64(shift) for shift in (1, 2, 4, 8, 16, 32))
_LAST_BIT = np.uint64(63)
_BLANK = b" \t\n\r"
_DAMAGED = "not a whole JSON file ({}); fetch it again"


@dataclass(frozen=True)
class Span:
    """Where members are in the file, from the first one's key to the last one's end.

    Args:
        start: byte offset.
        stop: byte offset of what follows.
        single: whether it is known to be one member, whose value is an object; otherwise there may be several, of
            any kind.
    """

    start: int
    stop: int
    single: bool


def member_spans(path: str | Path, block_bytes: int = BLOCK) -> Iterator[Span]:
    """Yield the members of the outermost object, in order, at most a block of the file in memory.

    Members whose values are objects come one a span; those of other values come together with their neighbours.

    Args:
        path: a file that holds one JSON object.
        block_bytes: how much is read at a time.

    Raises:
        DataError: there is no such file, it is not an object, ends early, goes on after its end, or has a member
            of more than 128 MiB. Damage inside members is left to ``parse_members``.
    """
    try:
        with Path(path).open("rb", buffering=0) as handle:
            yield from _Cutter(path, handle.fileno()).spans(block_bytes)
    except FileNotFoundError:
        raise DataError("there is no such file", file=path) from None


def read_span(descriptor: int, span: Span) -> bytes:
    """Return the text of a span of an open file."""
    return _read(descriptor, span.start, span.stop)


def parse_members(text: bytes) -> list[tuple[str, Any]]:
    """Return the (key, value) pairs of a span's text, repeated keys included; further inside, see ``pairs_of``.

    NaN and Infinity come as floats: what they mean in a record is for its reader to say.

    Raises:
        ValueError: it is not valid JSON.
    """
    last: list[tuple[str, Any]] = []

    # The outermost object is the last one to end.
    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal last
        last = pairs
        found = dict(pairs)
        return found if len(found) == len(pairs) else _Repeated(pairs)

    try:
        json.loads(f"{{{text.decode()}}}", object_pairs_hook=keep)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return last


def pairs_of(parsed: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the (key, value) pairs of an object inside a parsed member, repeated keys included."""
    return parsed.pairs if isinstance(parsed, _Repeated) else list(parsed.items())


class _Repeated(dict[str, Any]):
    """An object in which a key is repeated: as a dictionary it has the last value of each."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


class _Cutter:
    """The state of the pass: what the blocks so far leave open."""

    def __init__(self, path: str | Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._in_string = False
        self._escaped = False
        self._depth = 0
        # Where the text between members begins; None before the object.
        self._gap: int | None = None
        # The span that may still grow: its start, whether it is a single member.
        self._open: tuple[int, bool] | None = None
        self._ended = False

    def spans(self, block_bytes: int) -> Iterator[Span]:
        buffer = bytearray(block_bytes)
        self._flags = np.empty(-(-block_bytes // 64) * 64, dtype=np.bool_)
        offset = 0
        while n := os.readv(self._descriptor, [buffer]):
            block = np.frombuffer(buffer, dtype=np.uint8, count=n)
            outside = 0  # where the text after the object begins in this block
            if not self._ended:
                for position, opens, depth in self._brackets(block):
                    if self._gap is None:
                        self._blank(block[: position + (not opens)].tobytes(), offset)
                    yield from self._event(offset + position, opens, depth)
                    if self._ended:
                        outside = position + 1
                        break
            if self._ended or self._gap is None:
                self._blank(block[outside:].tobytes(), offset + outside)
            offset += n
            if self._open is not None:
                self._bounded(self._open[0], offset - block_bytes)
        if not self._ended:
            where = "inside a string" if self._in_string else f"with {self._depth} objects open"
            where = where if self._gap is not None else "without an object"
            raise DataError(_DAMAGED.format(f"it ends at byte {offset} {where}"), file=self._path)

    def _brackets(self, block: NDArray[np.uint8]) -> Iterator[tuple[int, bool, int]]:
        """Yield the braces that open or close the outermost object or a member: position, opens, depth after."""
        quotes, opens, closes = (self._words(block, character) for character in (_QUOTE, _OPEN, _CLOSE))
        # The parity of the quotes up to each bit: in its word, then with the words before.
        inside = quotes
        for shift in _DOUBLING:
            inside ^= inside << shift
        odd = np.bitwise_xor.accumulate(inside >> _LAST_BIT)
        odd ^= np.uint64(self._in_string)
        # A quote that is escaped is inside a string, or it is damage that the parser names.
        inside[1:] ^= np.negative(odd[:-1])
        if self._in_string:
            inside[0] = ~inside[0]
        self._in_string = bool(odd[-1])
        outside = np.invert(inside, out=inside)
        opens &= outside
        closes &= outside
        lost = np.bitwise_count(closes).astype(np.int32)
        steps = np.bitwise_count(opens).astype(np.int32) - lost
        before = _exclusive(steps) + self._depth
        self._depth = int(before[-1] + steps[-1])
        # Most words are deep inside members: from here on only the others are looked at.
        near = np.flatnonzero((before - lost <= 1) & ((opens | closes) != 0))
        yield from _few_brackets(near, opens[near], closes[near], before[near] - _exclusive(steps[near]))

    def _words(self, block: NDArray[np.uint8], character: int) -> NDArray[np.uint64]:
        """Return where a character is, a bit a byte, without the quotes that are escaped."""
        flags = self._flags[: -(-len(block) // 64) * 64]
        flags[len(block) :] = False
        found = flags[: len(block)]
        escapes = character == _QUOTE and (self._escaped or np.equal(block, _BACKSLASH, out=found).any())
        np.equal(block, character, out=found)
        if escapes:
            self._unescape(block, found)
        return np.packbits(flags, bitorder="little").view("<u8")

    def _unescape(self, block: NDArray[np.uint8], quotes: NDArray[np.bool_]) -> None:
        """Take the quotes away that follow an odd number of backslashes."""
        slashes = np.flatnonzero(block == _BACKSLASH)
        first = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
        starts, lengths = slashes[first], np.diff(first, append=len(slashes))
        ends = starts + lengths
        odd = lengths % 2 == 1
        if self._escaped:  # by the end of the block before
            if len(starts) and starts[0] == 0:
                odd[0] = not odd[0]
            else:
                quotes[0] = False
        escaped = ends[odd]
        self._escaped = bool(len(escaped)) and int(escaped[-1]) == len(block)
        quotes[escaped[: len(escaped) - self._escaped]] = False

    def _event(self, position: int, opens: bool, depth: int) -> Iterator[Span]:
        if opens and depth == 2:
            yield from self._member(position)
        elif depth == 1:
            self._gap = position + 1
        else:
            yield from self._end(position)

    def _member(self, position: int) -> Iterator[Span]:
        gap = self._gap or 0
        match = _KEY.fullmatch(_read(self._descriptor, gap, position)) if position - gap <= _LONGEST_KEY else None
        # The first member follows no comma, all others do.
        if match is not None and bool(match[1]) == (self._open is not None):
            if self._open is not None:
                yield self._span(*self._open, stop=gap)
            self._open = gap + match.start(2), True
        else:
            self._open = (gap if self._open is None else self._open[0]), False

    def _end(self, position: int) -> Iterator[Span]:
        gap = self._gap or 0
        self._bounded(gap, position)
        if _read(self._descriptor, gap, position).strip(_BLANK):
            yield self._span(gap if self._open is None else self._open[0], False, stop=position)
        elif self._open is not None:
            yield self._span(*self._open, stop=gap)
        self._open = None
        self._ended = True

    def _span(self, start: int, single: bool, *, stop: int) -> Span:
        self._bounded(start, stop)
        return Span(start, stop, single)

    def _bounded(self, start: int, stop: int) -> None:
        if stop - start > LARGEST_MEMBER:
            raise DataError(
                f"no end of the member at byte {start} within {LARGEST_MEMBER} bytes: damaged, or of another layout; "
                "fetch it again",
                file=self._path,
            )

    def _blank(self, text: bytes, offset: int) -> None:
        if text.strip(_BLANK):
            at = offset + len(text) - len(text.lstrip(_BLANK))
            what = "more follows its end" if self._ended else "not an object"
            raise DataError(_DAMAGED.format(f"{what} at byte {at}"), file=self._path)


def _few_brackets(
    words: NDArray[np.int64], opens: NDArray[np.uint64], closes: NDArray[np.uint64], depths: NDArray[np.int32]
) -> Iterator[tuple[int, bool, int]]:
    """Yield of some words what ``_Cutter._brackets`` does; depths: those before each, without the words before it."""
    bits = np.unpackbits((opens | closes).view(np.uint8), bitorder="little").reshape(-1, 64)
    word, place = np.nonzero(bits)
    opening = (opens[word] >> place.astype(np.uint64) & np.uint64(1)).astype(np.bool_)
    depth = np.add.accumulate(np.where(opening, 1, -1)) + depths[word]
    for index in np.flatnonzero(depth + ~opening <= 2).tolist():
        yield int(64 * words[word[index]] + place[index]), bool(opening[index]), int(depth[index])


def _exclusive(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the sum of what is before each value."""
    sums: NDArray[np.int32] = np.add.accumulate(values, dtype=np.int32) - values
    return sums


def _read(descriptor: int, start: int, stop: int) -> bytes:
    parts = []
    while start < stop:
        part = os.pread(descriptor, stop - start, start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return b"".join(parts)
