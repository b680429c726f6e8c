"""The application: which path does what."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..errors import KimiVLError
from .api_errors import ApiError
from .exchange import ChatEndpoint
from .gateway import Doorkeeper, Noting, error_response
from .keys import ApiKeys
from .metrics import TEXT_FORMAT, Metrics
from .models import MODELS_PREFIX, ModelsEndpoints
from .openapi import openapi_document
from .page import PageEndpoint
from .service import Service

CHAT_PATH = "/v1/chat/completions"
_OPEN_PATHS = ("/", "/health/live", "/health/ready")


def make_app(service: Service, metrics: Metrics, keys: ApiKeys | None) -> ASGIApp:
    """Make the ASGI application of a service."""
    models = ModelsEndpoints(service.options.model_names)
    document = openapi_document()

    async def live(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> Response:
        if service.is_ready:
            return JSONResponse({"status": "ready"})
        reason = "draining" if service.is_draining else "the engine fails"
        return JSONResponse({"status": reason}, status_code=503)

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.text(), media_type=TEXT_FORMAT)

    async def openapi(request: Request) -> Response:
        return JSONResponse(document)

    routes = [
        Route("/", PageEndpoint().answer),
        Route(CHAT_PATH, ChatEndpoint(service), methods=["POST"]),
        Route("/v1/models", models.list),
        Route(f"{MODELS_PREFIX}{{model:path}}", models.retrieve),
        Route("/health/live", live),
        Route("/health/ready", ready),
        Route("/metrics", show_metrics),
        Route("/openapi.json", openapi),
    ]
    app = Starlette(
        routes=routes,
        middleware=_middleware(service, keys),
        exception_handlers={
            KimiVLError: _answer_error,
            HTTPException: _answer_http_error,
            Exception: _answer_error,
        },
    )
    app.router.redirect_slashes = False  # it would lead to http behind a proxy that speaks https
    return Noting(app, metrics=metrics, paths=[route.path for route in routes])


def _middleware(service: Service, keys: ApiKeys | None) -> list[Middleware]:
    options = service.options
    door = Middleware(
        Doorkeeper, keys=keys, is_loopback=options.is_loopback, open_paths=_OPEN_PATHS
    )
    if not options.cors_origins:
        return [door]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=options.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # OpenAI's client for browsers sends a dozen of its own
        expose_headers=["X-Request-Id", "Retry-After"],
    )
    return [cors, door]


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(request.scope, ApiError.from_error(error))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Say what the router says, in the API's form."""
    assert isinstance(error, HTTPException)
    text = {404: "there is no such path", 405: "this path takes another method"}
    told = ApiError(
        error.status_code,
        text.get(error.status_code, error.detail),
        code={404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error"),
        headers=error.headers,
    )
    return error_response(request.scope, told)
