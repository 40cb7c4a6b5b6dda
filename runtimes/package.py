"""Opening a package: its manifest and sizes checked, tokenizer and graph loaded when asked for."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import onnxruntime

from gptoss_onnx.runtimes import generation_config
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation_config import GENERATION_CONFIG
from gptoss_onnx.runtimes.graph_contract import check_graph
from gptoss_onnx.runtimes.harmony import Harmony, stop_ids
from gptoss_onnx.runtimes.json_file import read_json
from gptoss_onnx.runtimes.manifest import Manifest
from gptoss_onnx.runtimes.package_files import check_sizes, inside, read_files
from gptoss_onnx.runtimes.package_journal import finish
from gptoss_onnx.runtimes.sampling import Sampling
from gptoss_onnx.runtimes.tokenizer import Tokenizer

# Providers whose libraries pip may have put beside ONNX Runtime, where the system does not look.
_WITH_LIBRARIES = frozenset({"CUDAExecutionProvider"})
CONFIG = "config.json"

_Part = TypeVar("_Part")


class _LoadedOnce(Generic[_Part]):
    """A part of a package that loads when first asked for: once, also by several threads.

    functools.cached_property has no lock from Python 3.12 on.
    """

    def __init__(self, load: Callable[[Any], _Part]) -> None:
        self._load = load
        self._name = load.__name__
        self.__doc__ = load.__doc__

    def __get__(self, package: Package, owner: type[Package]) -> _Part:
        with package.loading:
            if self._name not in vars(package):  # which is looked into first from then on
                vars(package)[self._name] = self._load(package)
            part: _Part = vars(package)[self._name]
            return part


class Package:
    """An opened package. Tokenizer and graph load when first asked for, once, from any thread."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.loading = threading.RLock()  # one part needs another: harmony the tokenizer
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
        `graph` is the file of one of its graphs, None the one to run here (graph_choice.py).
        Files that no application reads may be changed or gone; an update of them that was killed is
        finished (package_journal.py), and nothing else is ever written. Hashes are not checked here
        (`check_files` does): that would read every byte.
        """
        folder = Path(folder)
        if threads is not None and threads < 1:
            raise UserError(f"threads is {threads}: it must be at least 1")
        finish(folder)
        manifest = Manifest.load(folder, graph)
        if problems := check_sizes(folder, manifest, read_files(manifest)):
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise UserError(f"{folder}: {problems[0]}{more}; export or copy the package again")
        return cls(folder, manifest, threads, providers)

    @_LoadedOnce
    def tokenizer(self) -> Tokenizer:
        try:
            if not inside(self.folder, self.folder / "tokenizer.json"):
                raise FileNotFoundError
            return Tokenizer(self.folder, self.manifest.vocab_size)
        except FileNotFoundError as error:
            raise UserError(f"{self.folder}: the package has no tokenizer.json") from error

    @_LoadedOnce
    def harmony(self) -> Harmony:
        try:
            return Harmony(self.tokenizer)
        except ValueError as error:
            raise UserError(f"{self.folder}: cannot chat: {error}") from error

    @_LoadedOnce
    def config(self) -> Mapping[str, Any]:
        return self._optional_json(CONFIG)

    @_LoadedOnce
    def generation_config(self) -> Mapping[str, Any]:
        return self._optional_json(GENERATION_CONFIG)

    def _optional_json(self, name: str) -> Mapping[str, Any]:
        path = self.folder / name
        return read_json(path) if path.is_file() and inside(self.folder, path) else {}

    @_LoadedOnce
    def stop_ids(self) -> frozenset[int]:
        """`eos_token_id` of generation_config.json, or of config.json, and harmony's own stops.

        A file of another tool may name a padding token alone, and a reply then runs on past its
        end. UserError where neither names one.
        """
        said = ((GENERATION_CONFIG, self.generation_config), (CONFIG, self.config))
        found = (generation_config.stop_ids(config, self.folder / name) for name, config in said)
        own = next((ids for ids in found if ids is not None), None)
        if own is None:
            return self.harmony.stop_ids
        return own | (
            stop_ids(self.tokenizer) if "tokenizer.json" in self.manifest.files else set()
        )

    @_LoadedOnce
    def sampling(self) -> Sampling:
        """The sampling that generation_config.json asks for; UserError where it cannot be."""
        return self.sampling_with()

    def sampling_with(self, **given: Any) -> Sampling:
        """The same with fields that the caller gives: they win over the file, faults in it too."""
        where = self.folder / GENERATION_CONFIG
        return generation_config.sampling(self.generation_config, where, **given)

    @_LoadedOnce
    def graph(self) -> onnxruntime.InferenceSession:
        """The loaded graph; weights stay mapped from the package's files where ONNX Runtime can."""
        options = onnxruntime.SessionOptions()
        settings = self.manifest.session  # held to the schema: what targets write, and no more
        default = settings["providers"]
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
        own = settings.get("provider_options", {})
        chosen = [(name, own if name == default[0] else {}) for name in providers]
        for name, value in settings.get("config", {}).items():
            options.add_session_config_entry(name, value)
        if threads := self._threads or settings.get("intra_op_num_threads"):
            options.intra_op_num_threads = int(threads)
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
        check_graph(made, self.manifest, self.folder)
        return made
