"""Measurements of one server for Prometheus, in a registry of its own."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..videos.service import VideoService

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_UNKNOWN_ROUTE = "unknown"


class ServerMetrics(Collector):
    """What happened since the start, and how the videos of a service stand."""

    def __init__(self, service: VideoService) -> None:
        """Also counts the videos of ``service``."""
        self._service = service
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "isoframe_http_requests", "Requests by route and status", ["method", "route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "isoframe_http_first_byte_seconds", "Time until an answer begins", ["route"],
            registry=self._registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """Everything in the text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The videos by state, for the registry."""
        family = GaugeMetricFamily("isoframe_videos", "Videos that are kept, by state", labels=["state"])
        for state, count in self._service.counts().items():
            family.add_metric([state], count)
        yield family

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """A request was answered."""
        # Names that a client makes up would be a series each.
        route = getattr(scope.get("route"), "path", _UNKNOWN_ROUTE)
        method = scope["method"] if route != _UNKNOWN_ROUTE else _UNKNOWN_ROUTE
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class MeasureRequests:
    """ASGI middleware that counts and times every request."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        """Every request to ``app`` counts."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        start = time.perf_counter()

        async def measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.count(scope, message["status"], time.perf_counter() - start)
            await send(message)

        await self._app(scope, receive, measured)
