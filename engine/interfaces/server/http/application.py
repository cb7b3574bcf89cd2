"""The HTTP application over a service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse
from pydantic.json_schema import models_json_schema
from starlette.middleware.cors import CORSMiddleware

from ..videos.service import VideoService
from ..videos.workers import ModelCard
from .docs_page import docs_page
from .guard import Access, Guard
from .problems import install, problems
from .prometheus import CONTENT_TYPE, MeasureRequests, ServerMetrics
from .routes import make_router
from .schemas import Health, ModelList, ModelObject, VideoBody, VideoForm
from .uploads import UPLOAD_SECONDS, BodyLimit

_SCHEMAS = "#/components/schemas/{model}"
_DOCS_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_DESCRIPTION = "One image and a prompt in, a video out. Errors name the field that is meant."


def make_app(
    service: VideoService, access: Access | None = None, *, upload_seconds: float = UPLOAD_SECONDS
) -> FastAPI:
    """The application; it closes ``service`` when the server stops.

    Args:
        service: the videos.
        access: who may ask; None is everybody on this machine.
        upload_seconds: in which a request must have arrived.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    access = access or Access()
    app = _Application(
        title="isoframe",
        version=_version(),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.has_key = access.api_key is not None
    install(app, service.retry_seconds)
    metrics = ServerMetrics(service)
    _add_operations(app, metrics, service.card)
    app.include_router(make_router(service))
    # The last one is the outermost.
    app.add_middleware(Guard, access=access)
    app.add_middleware(BodyLimit, upload_bytes=service.limits.upload_bytes, upload_seconds=upload_seconds)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Range"],
            expose_headers=["Content-Range", "Retry-After"],
        )
    app.add_middleware(MeasureRequests, metrics=metrics)
    return app


class _Application(FastAPI):
    has_key = False

    def openapi(self) -> dict[str, Any]:
        """The document; the bodies that :mod:`.uploads` reads by itself are added."""
        if self.openapi_schema is None:
            document = super().openapi()
            _, bodies = models_json_schema(
                [(VideoBody, "validation"), (VideoForm, "validation")], ref_template=_SCHEMAS
            )
            document["components"]["schemas"].update(bodies["$defs"])
            if self.has_key:
                document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"key": []}]
        return super().openapi()


def _add_operations(app: FastAPI, metrics: ServerMetrics, card: ModelCard) -> None:
    @app.get("/healthz", tags=["server"], responses=problems(403))
    async def check_health() -> Health:
        """Whether the server answers; needs no key."""
        return Health(version=_version())

    @app.get("/v1/models", tags=["server"], responses=problems(401, 403))
    def list_models() -> ModelList:
        """The model that this server runs."""
        return ModelList(data=[ModelObject.of(card)])

    @app.get("/docs", include_in_schema=False)
    def read_docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()), headers={"Content-Security-Policy": _DOCS_POLICY})

    @app.get(
        "/metrics",
        tags=["server"],
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}, **problems(401, 403)},
    )
    def read_metrics() -> Response:
        """Measurements for Prometheus."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _version() -> str:
    try:
        return metadata.version("isoframe")
    except metadata.PackageNotFoundError:
        return "unknown"
