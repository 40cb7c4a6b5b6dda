"""Opening a package: its manifest and sizes checked, tokenizer and graph loaded when asked for."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import onnxruntime

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import Harmony
from gptoss_onnx.runtimes.manifest import MANIFEST, Manifest, check_sizes, read_json
from gptoss_onnx.runtimes.sampling import Sampling
from gptoss_onnx.runtimes.tokenizer import Tokenizer

# Providers whose libraries pip may have put beside ONNX Runtime, where the system does not look.
_WITH_LIBRARIES = frozenset({"CUDAExecutionProvider"})


class Package:
    """An opened package. Tokenizer and graph load when first asked for."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._threads = threads
        self._providers = providers

    @classmethod
    def open(
        cls,
        folder: Path | str,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        graph: str | None = None,
    ) -> Package:
        """Open `folder`; UserError when it is no package, a file is missing or cut short.

        `threads` computes with that many threads, None with the manifest's number or one a core.
        `graph` is the file of one of its graphs, None the first that can run here.
        Hashes are not checked here (`check_files` does): that would read every byte.
        """
        folder = Path(folder)
        if threads is not None and threads < 1:
            raise UserError(f"threads is {threads}: it must be at least 1")
        manifest = Manifest.load(folder, graph)
        if problems := check_sizes(folder, manifest):
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise UserError(f"{folder}: {problems[0]}{more}; export or copy the package again")
        return cls(folder, manifest, threads, providers)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        try:
            return Tokenizer(self.folder)
        except FileNotFoundError as error:
            raise UserError(f"{self.folder}: the package has no tokenizer.json") from error

    @cached_property
    def harmony(self) -> Harmony:
        try:
            return Harmony(self.tokenizer)
        except ValueError as error:
            raise UserError(f"{self.folder}: cannot chat: {error}") from error

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return self._optional_json("config.json")

    @cached_property
    def generation_config(self) -> Mapping[str, Any]:
        return self._optional_json("generation_config.json")

    def _optional_json(self, name: str) -> Mapping[str, Any]:
        path = self.folder / name
        return read_json(path) if path.exists() else {}

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """`eos_token_id` of generation_config.json, or of config.json; harmony's without either."""
        for config in (self.generation_config, self.config):
            ids = config.get("eos_token_id")
            if ids is not None:
                return frozenset(ids if isinstance(ids, list) else [ids])
        return self.harmony.stop_ids

    @cached_property
    def sampling(self) -> Sampling:
        """The sampling that generation_config.json asks for."""
        return Sampling.from_config(self.generation_config)

    @cached_property
    def graph(self) -> onnxruntime.InferenceSession:
        """The loaded graph; weights stay mapped from the package's files where ONNX Runtime can."""
        options = onnxruntime.SessionOptions()
        settings = {k: v for k, v in self.manifest.session.items() if v is not None}
        default = settings.pop("providers", ["CPUExecutionProvider"])
        available = onnxruntime.get_available_providers()
        # The manifest's are in order of preference, what the caller names must be there: ONNX
        # Runtime itself would warn and run on the CPU.
        preferred = [name for name in default if name in available] or default
        providers = list(self._providers or preferred)
        if absent := set(providers) - set(available):
            raise UserError(
                f"{self.folder}: this onnxruntime has no {', '.join(sorted(absent))}; "
                f"it has {', '.join(onnxruntime.get_available_providers())}"
            )
        own = settings.pop("provider_options", {})
        chosen = [(name, own if name == default[0] else {}) for name in providers]
        for name, value in settings.pop("config", {}).items():
            options.add_session_config_entry(name, str(value))
        if self._threads:
            settings["intra_op_num_threads"] = self._threads
        for name, value in settings.items():
            if not hasattr(options, name):
                raise UserError(f"{self.folder / MANIFEST}: unknown session option {name!r}")
            setattr(options, name, value)
        if _WITH_LIBRARIES & set(providers):
            with contextlib.redirect_stdout(io.StringIO()):  # what it misses may be found elsewhere
                onnxruntime.preload_dlls()
        try:
            path = str(self.folder / self.manifest.graph)
            made = onnxruntime.InferenceSession(path, options, providers=chosen)
        except Exception as error:  # ONNX Runtime's own errors share no narrower base
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self.folder}: ONNX Runtime cannot load the graph: {line}") from error
        if made.get_providers()[0] not in providers:  # it warned, and would run on the CPU
            raise UserError(
                f"{self.folder}: {providers[0]} does not start here: is there a GPU, and are its "
                "driver and libraries those that this onnxruntime wants?"
            )
        return made
