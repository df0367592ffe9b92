"""A block that does not match its checksum: split, data set and rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Damage:
    """A block that does not match its checksum: rows ``start`` to ``stop`` - 1 of a split's data set."""

    split: str
    data_set: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"/{self.split}/{self.data_set}, rows {self.start} to {self.stop - 1}, do not match their checksum"
