"""Figures for Prometheus, each server's its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gptoss_onnx.assistant.choice import TurnUsage

if TYPE_CHECKING:
    from gptoss_onnx.assistant.models import Model

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_SECONDS_A_TOKEN = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)


class Metrics:
    def __init__(self, models: Iterable[Model] = ()) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engines(models))

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"gptoss_{name}", about, labels, registry=self.registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(
                f"gptoss_{name}", about, ["model"], registry=self.registry, buckets=buckets
            )

        self.requests = counter("requests", "Requests answered.", "endpoint", "status")
        self._tokens = counter("tokens", "Tokens; cached ones are prompt's too.", "model", "kind")
        self.loads = counter("model_loads", "Packages loaded.", "model")
        self._first = histogram("first_token_seconds", "From request to first token.", _SECONDS)
        self._each = histogram("token_seconds", "Between tokens of a reply.", _SECONDS_A_TOKEN)

    def answered(
        self, model: str, usage: TurnUsage, first: float | None, each: float | None
    ) -> None:
        """`first`: seconds to the first token; `each`: seconds a token behind it."""
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("completion", usage.completion_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            self._tokens.labels(model, kind).inc(count)
        if first is not None:
            self._first.labels(model).observe(first)
        if each is not None:
            self._each.labels(model).observe(each)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Engines(Collector):
    """What engines are doing as they are asked."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        active = GaugeMetricFamily("gptoss_rows_active", "Replies under way.", labels=["model"])
        waiting = GaugeMetricFamily("gptoss_rows_waiting", "Replies queued.", labels=["model"])
        loaded = GaugeMetricFamily("gptoss_model_loaded", "1 if it is.", labels=["model"])
        for model in self._models:
            engine = model.engine
            loaded.add_metric([model.id], float(engine is not None))
            active.add_metric([model.id], float(engine.active if engine else 0))
            waiting.add_metric([model.id], float(engine.waiting if engine else 0))
        yield from (active, waiting, loaded)
