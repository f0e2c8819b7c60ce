"""Which person a list has named already, for lists of millions, in about twenty bytes a row.

A Python dict of numbers and row indices would take over a hundred. A North American number has ten
digits, 34 bits, and the index of its first row fits into 30 more, so that one 64-bit integer holds
both. These integers lie in many small open-addressing tables, so that growing one of them never
holds up the event loop. What does not fit that form goes into an ordinary dict.
"""

from __future__ import annotations

from array import array

__all__ = ["SeenNumbers"]

_INDEX_BITS = 30
_INDEX_MASK = (1 << _INDEX_BITS) - 1
# A prime: the numbers of one exchange, and every tenth of them, spread over all tables.
_SHARDS = 1021


class _Shard:
    __slots__ = ("mask", "room", "table")

    def __init__(self) -> None:
        self.table = array("Q", bytes(8 * 8))
        self.mask = 7
        self.room = 5


class SeenNumbers:
    """Remembers the row in which each number came first. A number with another `postd` is another
    person; another caller ID is not."""

    __slots__ = ("_others", "_shards")

    def __init__(self) -> None:
        self._shards: list[_Shard | None] = [None] * _SHARDS
        self._others: dict[tuple[str, str | None], int] = {}

    def first(self, digits: str, postd: str | None, index: int) -> int | None:
        """Return the index of the row that named this number before; None, and note it, if none
        did."""
        if postd is not None or len(digits) != 11 or digits[0] != "1" or index >= _INDEX_MASK:
            before = self._others.setdefault((digits, postd), index)
            return None if before == index else before
        number = int(digits) - 10_000_000_000
        place, which = divmod(number, _SHARDS)
        shard = self._shards[which]
        if shard is None:
            shard = self._shards[which] = _Shard()
        table, mask = shard.table, shard.mask
        place &= mask
        # Index + 1, so that no entry is zero: zero is an empty place.
        while entry := table[place]:
            if entry >> _INDEX_BITS == number:
                return (entry & _INDEX_MASK) - 1
            place = (place + 1) & mask
        table[place] = number << _INDEX_BITS | (index + 1)
        shard.room -= 1
        if not shard.room:
            self._grow(shard)
        return None

    @staticmethod
    def _grow(shard: _Shard) -> None:
        old = shard.table
        size = 2 * len(old)
        table = array("Q", bytes(8 * size))
        mask = size - 1
        for entry in old:
            if entry:
                place = (entry >> _INDEX_BITS) // _SHARDS & mask
                while table[place]:
                    place = (place + 1) & mask
                table[place] = entry
        shard.table, shard.mask = table, mask
        shard.room = size // 4  # so that it is never more than three quarters full
