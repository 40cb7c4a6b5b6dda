"""The kernels of ONNX Runtime's CUDA provider, asked of its own library; needs no GPU.

    python -m tests.targets.cuda_library     (Linux on x86-64 with a compiler)

It takes two wheels of 270 MB by name and writes cuda_kernels.json, which the CUDA targets' tables
are held to in every `make test`. The library itself lists what it registers, but loads only beside
CUDA and TensorRT: it is given empty ones, whose functions do nothing. Nothing is computed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import onnx

from runtimes.target import Target, get_target
from tests.installed import installed

RELEASES = {"cuda": "1.31.1", "cuda_sm70": "1.26.0"}
KERNELS = Path(__file__).with_name("cuda_kernels.json")
OPEN = 2**31 - 1  # the last version of a registration that names none
# Of the program itself: C's libraries, and the other half of ONNX Runtime.
OWN = re.compile(r"@(GLIBC|CXXABI|GCC)|Provider_GetHost")
LIST = """
import json
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def
print(json.dumps([
    (k.domain, k.op_name, *k.version_range,
     {name: [str(kind) for kind in kinds] for name, kinds in k.type_constraints.items()})
    for k in get_all_opkernel_def() if k.provider == "CUDAExecutionProvider"
]))
"""
FLOATS = {"DOUBLE", "FLOAT", "FLOAT16", "BFLOAT16"}
# By operator, by "first-last" version: the element types it takes, of floats those it computes in.
Kernels = dict[str, dict[str, str]]


def said(*command: object) -> str:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=True
    ).stdout


def empty_libraries(folder: Path, *users: Path) -> None:
    """Write a library for each of NVIDIA's that `users` need, with the functions they call."""
    called = defaultdict(set)
    for user in users:
        for name in re.findall(r"NEEDED.*\[(lib(?:cu|nv).*)\]", said("readelf", "-d", user)):
            called[name] |= set()
        for symbol in re.findall(r" U (\S+)", said("nm", "-D", user)):
            if not OWN.search(symbol):
                function, _, name = symbol.partition("@")
                for one in [name] if name else [*called]:
                    called[one].add(function)
    for name, functions in called.items():
        source, versions = folder / f"{name}.c", folder / f"{name}.map"
        source.write_text("".join(f"long {function}() {{ return 0; }}\n" for function in functions))
        versions.write_text(f"{name} {{ global: *; }};\n")
        link = [f"-Wl,-soname,{name}", f"-Wl,--version-script,{versions}"]
        said("cc", "-w", "-shared", "-fPIC", *link, "-o", folder / name, source)


def element_types(parameters: dict[str, list[str]]) -> set[str]:
    """Of a registration's type parameters; floats from the first that takes any.

    Later ones are of scales or statistics: QMoE's are float32 in a kernel for float16.
    """
    found: set[str] = set()
    for _, kinds in sorted(parameters.items()):
        types = {kind[7:-1].upper() for kind in kinds if kind.startswith("tensor(")}
        found |= types - FLOATS if FLOATS & found else types
    return found


def registered(release: str) -> Kernels:
    """What the CUDA provider of that release of onnxruntime-gpu has kernels of."""
    wheel = installed("onnxruntime-gpu", release)
    providers = [
        wheel / f"onnxruntime/capi/libonnxruntime_providers_{n}.so" for n in ("cuda", "tensorrt")
    ]
    with tempfile.TemporaryDirectory() as folder:
        empty_libraries(Path(folder), *providers)
        paths = {"LD_LIBRARY_PATH": folder, "PYTHONPATH": str(wheel)}
        done = subprocess.run(
            [sys.executable, "-c", LIST], env=os.environ | paths, capture_output=True, check=True
        )
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for domain, op, first, last, types in json.loads(done.stdout):
        versions = f"{first}-{'' if last == OPEN else last}"
        found[f"{domain or 'ai.onnx'}::{op}"][versions] |= element_types(types)
    return {
        op: {versions: " ".join(sorted(types)) for versions, types in by_version.items()}
        for op, by_version in sorted(found.items())
    }


def wrong(target: Target, kernels: Kernels) -> list[str]:
    """What the target's table promises and the library does not hold.

    A registration without a last version takes nodes of its first version only.
    """
    problems = []
    for (domain, op), promised in target.kernels.items():
        version = 1
        if domain == "" and onnx.defs.has(op):
            version = onnx.defs.get_schema(op, target.opset).since_version
        types: set[str] = set()
        for versions, some in kernels.get(f"{domain or 'ai.onnx'}::{op}", {}).items():
            first, last = versions.split("-")
            if int(first) <= version <= int(last or first):
                types |= {*some.split()}
        if not types:
            problems.append(f"{op}: no kernel of version {version}")
        elif missing := promised.dtypes - types:
            problems.append(f"{op}: no kernel for {', '.join(sorted(missing))}")
    return problems


def main() -> None:
    """Write the kernels of the operators that the tables name."""
    content = {}
    for name, release in RELEASES.items():
        target, kernels = get_target(name), registered(release)
        named = {f"{domain or 'ai.onnx'}::{op}" for domain, op in target.kernels}
        content[release] = {op: kernels[op] for op in kernels if op in named}
        problems = wrong(target, kernels)
        print(f"{name} on {release}:", "; ".join(problems) or "every kernel is there")
    KERNELS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
