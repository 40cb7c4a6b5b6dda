"""The packages that a server has: loaded when asked for, the least used unloaded for others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gptoss_onnx.assistant.errors import ApiError, not_served
from gptoss_onnx.assistant.grammar import Grammars
from gptoss_onnx.runtimes.engine import Engine
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import MANIFEST, Manifest
from gptoss_onnx.runtimes.package import Package

_log = logging.getLogger("gptoss")


@dataclass(frozen=True)
class EngineOptions:
    """How each package is run. `context` (tokens) limits its own length, None does not."""

    rows: int = 16
    queue: int = 256
    context: int | None = None
    cache_bytes: int | None = None
    threads: int | None = None


@dataclass
class Model:
    """A package that is served by the name `id`; `engine` is None while it is not loaded."""

    id: str
    folder: Path
    name: str  # the manifest's, which is understood too where no other package has it
    context_length: int  # tokens of a prompt and its reply
    created: int  # seconds since 1970
    engine: Engine | None = None
    grammars: Grammars | None = None  # of the engine's package
    lent: int = 0  # requests that use it
    used: float = 0.0

    def describe(self) -> dict[str, object]:
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "local",
            "context_length": self.context_length,
            "loaded": self.engine is not None,
        }


class Models:
    """Those of a package, or of a folder of packages. Of an event loop, not thread-safe."""

    def __init__(
        self,
        folder: Path | str,
        options: EngineOptions | None = None,
        *,
        max_loaded: int = 1,
        patience: float = 60.0,
        on_load: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`patience`: seconds to wait for room while every loaded model is answering.

        UserError where there is no package. One that cannot be opened is told in the log.
        """
        self.options = options or EngineOptions()
        self._max_loaded = max_loaded
        self._patience = patience
        self.on_load = on_load
        found = _open(Path(folder), self.options.context)
        self._models = {model.id: model for model in found}
        names = [model.name for model in found]
        for model in found:
            if names.count(model.name) == 1:
                self._models.setdefault(model.name, model)
        self._loading: dict[str, asyncio.Task[Engine]] = {}
        self._one_load = asyncio.Lock()
        self._room = asyncio.Condition()

    def __iter__(self) -> Iterator[Model]:
        """Each once, by id."""
        return (model for name, model in sorted(self._models.items()) if name == model.id)

    def __getitem__(self, name: str) -> Model:
        if name not in self._models:
            raise not_served(name, [model.id for model in self])
        return self._models[name]

    @asynccontextmanager
    async def lend(self, name: str) -> AsyncIterator[tuple[Model, Engine]]:
        """The model, loaded; it stays so until it is given back. ApiError where it cannot be."""
        model = self[name]
        model.lent += 1
        try:
            yield model, await self._loaded(model)
        finally:
            model.lent -= 1
            model.used = time.monotonic()
            if not model.lent:
                async with self._room:
                    self._room.notify_all()

    async def _loaded(self, model: Model) -> Engine:
        if model.engine is not None:
            return model.engine
        if model.id not in self._loading:
            task = asyncio.create_task(self._load(model))
            self._loading[model.id] = task
            task.add_done_callback(lambda _: self._loading.pop(model.id))
        # Of many who wait, one may leave: the others still want it.
        return await asyncio.shield(self._loading[model.id])

    async def _load(self, model: Model) -> Engine:
        try:
            async with self._one_load:
                await self._make_room(model)
                model.engine = await asyncio.to_thread(self._start, model)
        except UserError as error:
            _log.error("%s cannot be loaded: %s", model.id, error)
            raise ApiError(
                f"the model {model.id} cannot be loaded: the server's log says why",
                status=503,
                code="model_not_loaded",
            ) from error
        model.grammars = Grammars(model.engine.package)
        model.used = time.monotonic()
        self.on_load(model.id)
        return model.engine

    def _start(self, model: Model) -> Engine:
        package = Package.open(model.folder, threads=self.options.threads)
        package.harmony, package.stop_ids, package.sampling  # noqa: B018  what is wrong, now
        return Engine(
            package,
            rows=self.options.rows,
            queue=self.options.queue,
            max_length=model.context_length,
            cache_bytes=self.options.cache_bytes,
        )

    async def _make_room(self, model: Model) -> None:
        """Unload until there is room for one more, the least recently used first."""
        deadline = time.monotonic() + self._patience
        while len(loaded := [m for m in self if m.engine is not None]) >= self._max_loaded:
            if idle := [m for m in loaded if not m.lent]:
                await self._unload(min(idle, key=lambda m: m.used))
                continue
            try:
                async with self._room:
                    left = deadline - time.monotonic()
                    await asyncio.wait_for(self._room.wait(), max(left, 0.001))
            except TimeoutError:
                raise ApiError(
                    f"there is no room for {model.id} while other models are answering: try again",
                    status=503,
                    code="model_not_loaded",
                    headers={"Retry-After": "10"},
                ) from None

    async def _unload(self, model: Model) -> None:
        engine, model.engine, model.grammars = model.engine, None, None
        if engine is not None:
            await asyncio.to_thread(engine.close)

    async def close(self) -> None:
        """What runs is cancelled."""
        for task in list(self._loading.values()):
            await asyncio.wait([task])
        for model in self:
            await self._unload(model)


def _open(folder: Path, context: int | None) -> list[Model]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / MANIFEST).is_file():
        return [_described(folder, context)]
    found = []
    for path in sorted(folder.iterdir()):
        if (path / MANIFEST).is_file():
            try:
                found.append(_described(path, context))
            except UserError as error:
                _log.warning("not served: %s", error)
    if not found:
        raise UserError(
            f"{folder}: neither a package nor a folder of packages that can be opened: make one "
            "with gptoss export"
        )
    return found


def _described(folder: Path, context: int | None) -> Model:
    manifest: Manifest = Package.open(folder).manifest
    length = manifest.context_length
    created = int((folder / MANIFEST).stat().st_mtime)
    return Model(
        folder.resolve().name, folder, manifest.name, min(context or length, length), created
    )
