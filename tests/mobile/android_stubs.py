"""Whether the newest Android has what compiled classes call, by name and number of arguments.

PyPI's chaquopy-stubs-android are type stubs made from Google's android.jar of one API level: no
classes to compile against, but every class and member there is.
"""

from __future__ import annotations

import ast
import re
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.installed import installed
from tests.mobile.android_sdk import GRADLE
from tests.mobile.kotlin import named

RELEASE = "36.20260406"
SIZES = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 18: 4}


class Member(NamedTuple):
    """A method of a class, as class files name both; arguments are counted."""

    owner: str
    name: str
    arguments: int


def called(class_file: bytes) -> Iterator[Member]:
    """The methods in a class file's pool of constants."""
    (count,) = struct.unpack_from(">H", class_file, 8)
    pool: dict[int, tuple[int, bytes]] = {}
    at, index = 10, 1
    while index < count:
        tag = class_file[at]
        size = SIZES[tag] if tag != 1 else 2 + struct.unpack_from(">H", class_file, at + 1)[0]
        pool[index] = tag, class_file[at + 1 : at + 1 + size]
        at += 1 + size
        index += 2 if tag in (5, 6) else 1

    def text(place: int) -> str:
        tag, content = pool[place]
        return content[2:].decode() if tag == 1 else text(struct.unpack(">H", content)[0])

    for tag, content in list(pool.values()):
        if tag in (10, 11):
            owner, described = struct.unpack(">HH", content)
            name, kind = struct.unpack(">HH", pool[described][1])
            arguments = re.findall(r"\[*(?:L[^;]+;|[BCDFIJSZ])", text(kind).split(")")[0])
            yield Member(text(owner), text(name).replace("<init>", "__init__"), len(arguments))


@cache
def stub(owner: str) -> tuple[ast.ClassDef, str] | None:
    """The class of that name, and its package."""
    assert RELEASE.startswith(named(r"compileSdk = (\d+)", GRADLE) + ".")
    *package, name = owner.split("/")
    root = installed("chaquopy-stubs-android", RELEASE)
    file = Path(root, f"{package[0]}-stubs", *package[1:], "__init__.pyi")
    if not file.is_file():
        return None
    found: ast.Module | ast.ClassDef = ast.parse(file.read_text("utf-8"))
    for part in name.split("$"):
        inner = [n for n in found.body if isinstance(n, ast.ClassDef) and n.name == part]
        if not inner:
            return None
        found = inner[0]
    assert isinstance(found, ast.ClassDef)
    return found, "/".join(package)


def exists(member: Member) -> bool:
    """Whether its class, or one above it, has it."""
    found = stub(member.owner)
    if found is None:
        return False
    body, package = found
    for method in body.body:
        if isinstance(method, ast.FunctionDef) and method.name == member.name:
            static = any(getattr(d, "id", "") == "staticmethod" for d in method.decorator_list)
            arguments = len(method.args.posonlyargs + method.args.args) - (not static)
            if arguments == member.arguments:
                return True
    above = (ast.unparse(base).split("[")[0].replace(".", "/") for base in body.bases)
    owners = (base if "/" in base else f"{package}/{base}" for base in above)
    return any(exists(member._replace(owner=owner)) for owner in owners)
