"""What ONNX Runtime's CUDA library says itself of our tables and packages; needs no GPU.

    python -m tests.targets.cuda_library
    python -m tests.targets.cuda_library PACKAGE... --refused PACKAGE

The first writes cuda_kernels.json, all that the library registers of our tables' operators, which
these are held to in every `make test`. The second says whether it takes each node of the packages,
and that it does not take those of the refused one. On Linux, x86-64, with a compiler: the library
comes by name, in wheels of 270 MB, and loads only beside CUDA and TensorRT. It is given empty ones,
whose functions do nothing but find memory. Nothing is computed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import onnx

from gptoss_onnx.runtimes.manifest import Manifest
from gptoss_onnx.runtimes.target import Target, get_target
from tests.conftest import ROOT
from tests.installed import installed

RELEASES = {"cuda": "1.31.1", "cuda_sm70": "1.26.0"}
KERNELS = Path(__file__).with_name("cuda_kernels.json")
OPEN = 2**31 - 1  # the last version of a registration that names none
# Of the program itself: C's libraries, and the other half of ONNX Runtime.
OWN = re.compile(r"@(GLIBC|CXXABI|GCC)|Provider_GetHost")
MEMORY = {"cudaMalloc", "cudaMallocFromPoolAsync", "cudaMallocHost", "cudaHostAlloc"}
FUNCTION = "long {name}(void **found, size_t size) {{ {body}return 0; }}\n"
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


def said(*command: object, **environment: str) -> str:
    """What a command prints."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def empty_libraries(folder: Path, *users: Path) -> None:
    """Write a library for each of NVIDIA's that `users` need, with the functions they call."""
    called: dict[str, set[str]] = defaultdict(set)
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
        code = ["#include <stdlib.h>\n"]
        for function in sorted(functions):
            body = "*found = calloc(1, size); " if function in MEMORY else ""
            code.append(FUNCTION.format(name=function, body=body))
        source.write_text("".join(code))
        versions.write_text(f"{name} {{ global: *; }};\n")
        link = [f"-Wl,-soname,{name}", f"-Wl,--version-script,{versions}"]
        said("cc", "-w", "-shared", "-fPIC", *link, "-o", folder / name, source)


def beside_empty_cuda(release: str, *arguments: str) -> str:
    """What Python prints with that release of onnxruntime-gpu."""
    wheel = installed("onnxruntime-gpu", release)
    capi = wheel / "onnxruntime" / "capi"
    with tempfile.TemporaryDirectory() as folder:
        users = [capi / f"libonnxruntime_providers_{name}.so" for name in ("cuda", "tensorrt")]
        empty_libraries(Path(folder), *users)
        path = f"{wheel}{os.pathsep}{ROOT}"
        return said(sys.executable, *arguments, LD_LIBRARY_PATH=folder, PYTHONPATH=path)


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
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for domain, op, first, last, types in json.loads(beside_empty_cuda(release, "-c", LIST)):
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


def write() -> bool:
    """Write the kernels of the tables' operators; whether every promised one is among them."""
    content, right = {}, True
    for name, release in RELEASES.items():
        target, kernels = get_target(name), registered(release)
        named = {f"{domain or 'ai.onnx'}::{op}" for domain, op in target.kernels}
        content[release] = {op: kernels[op] for op in kernels if op in named}
        problems = wrong(target, kernels)
        print(f"{name} on {release}:", "; ".join(problems) or "every kernel is there")
        right = right and not problems
    KERNELS.write_text(json.dumps(content, indent=1) + "\n")
    return right


def placed(package: Path) -> bool:
    """Whether the library of its target's release takes a package's nodes; prints the answer."""
    release = RELEASES.get(Manifest.load(package).target, RELEASES["cuda"])
    line = beside_empty_cuda(release, "-m", "tests.targets.cuda_placement", str(package.resolve()))
    print(f"onnxruntime-gpu {release}: {line}", end="", flush=True)
    return ": ok " in line


def main() -> bool:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("packages", type=Path, nargs="*")
    parser.add_argument("--refused", type=Path, help="a package that must not be taken")
    given = parser.parse_args()
    if not given.packages:
        return write()
    taken = [placed(package) for package in given.packages]
    if given.refused:
        print("this one must fail:")
        taken.append(not placed(given.refused))
    return all(taken)


if __name__ == "__main__":
    sys.exit(not main())
