"""GET /v1/models."""

import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .api_errors import ApiError

MODELS_PREFIX = "/v1/models/"


class ModelsEndpoints:
    """Names what is served."""

    def __init__(self, names: Sequence[str]) -> None:
        """Serve one model under some names."""
        created = int(time.time())
        self._models = {
            name: {"id": name, "object": "model", "created": created, "owned_by": "kimivl"}
            for name in names
        }

    async def list(self, request: Request) -> Response:
        """List all names."""
        listed: list[dict[str, Any]] = [*self._models.values()]
        return JSONResponse({"object": "list", "data": listed})

    async def retrieve(self, request: Request) -> Response:
        """Describe one.

        Raises:
            ApiError: there is none of that name.
        """
        model = self._models.get(request.path_params["model"])
        if model is None:
            raise ApiError(404, "there is no model of that name", code="model_not_found")
        return JSONResponse(model)
