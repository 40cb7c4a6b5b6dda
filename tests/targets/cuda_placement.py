"""Where ONNX Runtime puts the nodes of packages; cuda_library.py runs this beside an empty CUDA.

python -m tests.targets.cuda_placement PACKAGE...
"""

from __future__ import annotations

import dataclasses
import sys

from gptoss_onnx.runtimes.package import Package
from tests.targets.cuda_check import placement

PROVIDER = "CUDAExecutionProvider"


def main(folders: list[str]) -> None:
    for folder in folders:
        package = Package.open(folder, providers=[PROVIDER])
        session = package.manifest.session
        # Kernels that pack weights on the GPU would ask for one.
        config = {**session.get("config", {}), "session.disable_prepacking": "1"}
        manifest = dataclasses.replace(package.manifest, session={**session, "config": config})
        found = placement(Package(package.folder, manifest), PROVIDER)
        print(f"{package.folder.name}: {found.line()}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
