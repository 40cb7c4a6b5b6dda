"""Figures of several replicas on one page for Prometheus, each with its replica as a label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def joined(pages: Iterable[tuple[str, bytes]]) -> bytes:
    """`pages` are replicas' names and what they tell."""
    registry = CollectorRegistry()
    registry.register(_Joined(list(pages)))
    return generate_latest(registry)


class _Joined(Collector):
    def __init__(self, pages: list[tuple[str, bytes]]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, page in self._pages:
            for found in text_string_to_metric_families(page.decode()):
                family = families.setdefault(
                    found.name, Metric(found.name, found.documentation, found.type)
                )
                family.samples += [
                    sample._replace(labels={**sample.labels, "replica": replica})
                    for sample in found.samples
                ]
        yield from families.values()
