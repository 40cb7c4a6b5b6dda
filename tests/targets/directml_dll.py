"""Our table of DirectML's kernels against the one inside ONNX Runtime's own library.

    python -m tests.targets.directml_dll onnxruntime.dll

test_directml.py does it in every `make test`, with the library out of the Windows wheel.

The provider registers its kernels from a static array of records, so the library's read-only data
holds it: a pointer to the operator's name, its version, a pointer to the domain, and sets of
element types. `If` and its like are registered by code instead, and are not looked for.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx

from gptoss_onnx.runtimes.target import Target, get_target

BY_CODE = {("", "If")}  # in versions 7, 11, 13, 16 and 19
RECORD, TYPE_SETS = 160, 88  # bytes of a record; where it counts and points to its sets of types
TYPES = {  # bits of a set
    "FLOAT": 1, "UINT4": 2, "INT4": 3, "UINT8": 4, "INT8": 5, "UINT16": 6, "INT16": 7, "INT32": 8,
    "INT64": 9, "BOOL": 11, "FLOAT16": 12, "DOUBLE": 13, "UINT32": 14, "UINT64": 15,
}  # fmt: skip
# Operators of a domain that are of no ONNX opset: ONNX Runtime's, registered as version 1.
OWN_VERSION = 1


class Kernel(NamedTuple):
    """One registration: its version, and the element types of all of its type parameters."""

    domain: str
    op: str
    version: int
    dtypes: frozenset[str]


class Library:
    """A Windows library of 64 bits; addresses are those it is linked for."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        header = self._read("<I", 0x3C)[0]
        count, optional = self._read("<H", header + 6)[0], self._read("<H", header + 20)[0]
        self.base = self._read("<Q", header + 48)[0]
        sections = [header + 24 + optional + 40 * index for index in range(count)]
        # name, address, size in the file, offset in the file
        self._sections = [
            (
                self.data[at : at + 8].rstrip(b"\0"),
                *(self._read("<I", at + n)[0] for n in (12, 16, 20)),
            )
            for at in sections
        ]

    def _read(self, form: str, offset: int) -> tuple[int, ...]:
        return struct.unpack_from(form, self.data, offset)

    def offset(self, address: int) -> int | None:
        relative = address - self.base
        for _, start, size, offset in self._sections:
            if start <= relative < start + size:
                return offset + relative - start
        return None

    def text(self, address: int) -> str | None:
        start = self.offset(address)
        if start is None:
            return None
        end = self.data.find(b"\0", start, start + 64)
        try:
            return self.data[start:end].decode("ascii") if end >= start else None
        except UnicodeDecodeError:
            return None

    def kernels(self) -> Iterator[Kernel]:
        """Every registration of DirectML's provider."""
        (start, size) = next((o, s) for name, _, s, o in self._sections if name == b".rdata")
        for at in range(start, start + size - RECORD, 8):
            name, version, _, domain = self._read("<QiiQ", at)
            if not 0 < version < 30 or not name > self.base < domain:
                continue
            op, of = self.text(name), self.text(domain)
            if op is None or not re.fullmatch("[A-Z][A-Za-z0-9]+", op):
                continue
            if of in ("", "com.microsoft"):
                count, sets = self._read("<QQ", at + TYPE_SETS + 8)
                place = self.offset(sets)
                if 0 < count < 5 and place is not None:
                    bits = 0
                    for (own,) in struct.iter_unpack("<Q", self.data[place : place + 8 * count]):
                        bits |= own
                    dtypes = frozenset(name for name, bit in TYPES.items() if bits >> bit & 1)
                    yield Kernel(of, op, version, dtypes)


def wrong(target: Target, library: Library) -> list[str]:
    """What the target's table promises and the library does not hold."""
    found: dict[tuple[str, str, int], Kernel] = {}
    for kernel in library.kernels():
        found[kernel.domain, kernel.op, kernel.version] = kernel
    problems = []
    for (domain, op), promised in target.kernels.items():
        if (domain, op) in BY_CODE:
            continue
        version = OWN_VERSION
        if domain == "" and onnx.defs.has(op):
            version = onnx.defs.get_schema(op, target.opset).since_version
        kernel = found.get((domain, op, version))
        if kernel is None:
            problems.append(f"{op}: no kernel of version {version}")
        elif missing := promised.dtypes - kernel.dtypes:
            problems.append(f"{op}: no kernel for {', '.join(sorted(missing))}")
    return problems


if __name__ == "__main__":
    problems = wrong(get_target("directml"), Library(Path(sys.argv[1])))
    print("\n".join(problems) or "every kernel is there")
    sys.exit(bool(problems))
