"""The segment as bytes, from outside: where every word is, read out of shm/layout.h itself."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HEADER_TEXT = (Path(__file__).parents[2] / "shm" / "layout.h").read_text()
SIZES = {
    "uint64_t": 8,
    "uint32_t": 4,
    "uint8_t": 1,
    "unsigned char": 1,
    "pthread_mutex_t": 40,
    "sem_t": 32,
}
OPAQUE = ("pthread_mutex_t", "sem_t")  # libc's own: whoever writes into these is not forgiven
GROUP_SLOTS = 64
FREE, RUNNING, ORPHANED, DONE = range(4)


class Field(NamedTuple):
    name: str
    offset: int
    size: int
    opaque: bool


def _number(text: str) -> int:
    if text.isdigit():
        return int(text)
    found = re.search(rf"#define {text} (\d+)u?\b", HEADER_TEXT)
    if found:
        return int(found[1])
    # An enum's count otherwise, of which there is one: the reasons to run alone.
    return len(re.findall(r"^    UF_SOLO_(?!REASONS)\w+,", HEADER_TEXT, re.MULTILINE))


def fields(struct: str) -> dict[str, Field]:
    """Read a struct's fields; what the compiler asserts of its size is checked here too."""
    found = re.search(rf"struct {struct} \{{\n(.*?)\n\}};", HEADER_TEXT, re.DOTALL)
    assert found, struct
    code = re.sub(r"/\*.*?\*/", "", found[1], flags=re.DOTALL)
    # What lies in place of a semaphore is as opaque as one.
    code = re.sub(r"union \{\s*(sem_t \w+);.*\}", r"\1", code, flags=re.DOTALL)
    result, offset = {}, 0
    for line in code.split(";")[:-1]:
        declaration = re.fullmatch(r"\s*(?:_Atomic )?(unsigned char|struct uf_slot|\w+) (.*)", line)
        assert declaration, line
        kind, names = declaration[1], declaration[2]
        for name, count in re.findall(r"(\w+)(?:\[(\w+)\])?(?:, )?", names):
            if kind == "struct uf_slot":
                continue  # the last field of a group
            size = SIZES[kind]
            alignment = 8 if kind in OPAQUE else size
            offset = (offset + alignment - 1) // alignment * alignment
            length = size * (_number(count) if count else 1)
            result[name] = Field(name, offset, length, kind in OPAQUE)
            offset += length
    for name, asserted in re.findall(rf"offsetof\(struct {struct}, (\w+)\) == (\d+)", HEADER_TEXT):
        # The last field of a group is left out above, and what is inside a union.
        assert name not in result or result[name].offset == int(asserted), name
    return result


HEADER, THREAD, CELL, SLOT, GROUP = map(
    fields, ("uf_header", "uf_thread", "uf_cell", "uf_slot", "uf_group")
)
HEADER_BYTES, THREAD_BYTES, CELL_BYTES, SLOT_BYTES, GROUP_BYTES = 256, 128, 64, 256, 128


class Image:
    """A table's segment, mapped to be damaged."""

    def __init__(self, path: Path, geometry: dict[str, int]) -> None:
        fd = os.open(path, os.O_RDWR)
        try:
            self.bytes = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        self.groups = geometry["flights"] // GROUP_SLOTS
        self.cells = geometry["waiters_per_group"]
        self.threads = geometry["threads"]
        self.inline = geometry["inline_bytes"]
        self._group_stride = GROUP_BYTES + GROUP_SLOTS * SLOT_BYTES
        self.group_start = HEADER_BYTES + self.threads * THREAD_BYTES
        self.cell_start = self.group_start + self.groups * self._group_stride
        self.payload_start = self.cell_start + self.groups * self.cells * CELL_BYTES
        assert len(self.bytes) >= self.payload_start + geometry["flights"] * self.inline

    def close(self) -> None:
        self.bytes.close()

    def thread(self, index: int) -> int:
        return HEADER_BYTES + index * THREAD_BYTES

    def group(self, index: int) -> int:
        return self.group_start + index * self._group_stride

    def slot(self, index: int) -> int:
        group, index = divmod(index, GROUP_SLOTS)
        return self.group(group) + GROUP_BYTES + index * SLOT_BYTES

    def cell(self, index: int) -> int:
        """Offset of a cell, counted through all groups."""
        return self.cell_start + index * CELL_BYTES

    def payload(self, slot: int) -> slice:
        start = self.payload_start + slot * self.inline
        return slice(start, start + self.inline)

    def read(self, base: int, field: Field) -> int:
        start = base + field.offset
        return int.from_bytes(self.bytes[start : start + field.size], "little")

    def write(self, base: int, field: Field, value: bytes | int) -> None:
        assert not field.opaque
        if isinstance(value, int):
            value = value.to_bytes(field.size, "little")
        start = base + field.offset
        self.bytes[start : start + field.size] = value

    def used_slot(self) -> int:
        """The only slot in use."""
        (slot,) = [
            index
            for index in range(self.groups * GROUP_SLOTS)
            if self.read(self.slot(index), SLOT["state"]) != FREE
        ]
        return slot

    def used_cells(self) -> list[int]:
        return [
            index
            for index in range(self.groups * self.cells)
            if self.read(self.cell(index), CELL["owner"])
        ]

    def structs(self) -> Iterator[tuple[int, dict[str, Field]]]:
        """Every struct behind the header: its offset and its fields."""
        yield from ((self.thread(index), THREAD) for index in range(self.threads))
        for group in range(self.groups):
            yield self.group(group), GROUP
            for index in range(GROUP_SLOTS):
                yield self.slot(group * GROUP_SLOTS + index), SLOT
        yield from ((self.cell(index), CELL) for index in range(self.groups * self.cells))
