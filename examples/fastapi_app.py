"""A FastAPI application whose workers ask a slow backend once, however many requests wait for it.

    pip install uniflight-mp fastapi httpx uvicorn
    cd examples
    uvicorn --workers 4 fastapi_app:app                                   # or, with gunicorn:
    pip install gunicorn uvicorn-worker
    gunicorn --workers 4 -k uvicorn_worker.UvicornWorker fastapi_app:app

While one of these runs, ask for one price forty times at once. All take two seconds, and the
backend is called once:

    seq 40 | xargs -P 40 -I {} curl -s -D - http://127.0.0.1:8000/role/42
"""

from __future__ import annotations

import asyncio
import os
import time

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from uniflight_mp import AsyncMerger, FlightTimeout

BACKEND = os.environ.get("PRICES_BACKEND")  # such as http://127.0.0.1:9000; none: a pretence

# One table for all workers, which find it by its name; gunicorn_app.py uses the same one, so
# its sync workers and these coalesce together.
merger = AsyncMerger(os.environ.get("PRICES_TABLE", "example-prices"), timeout=25)
app = FastAPI()


class BackendError(Exception):
    """Made from nothing but its arguments, so every waiting worker raises it as well."""


@merger.coalesce(key="price:{sku}")
async def get_price(sku: str) -> dict[str, object]:
    """Ask the backend. Calls for one sku that overlap, in any worker, do this once."""
    if BACKEND is None:
        await asyncio.sleep(2)
        return {"sku": sku, "price": "19.90", "made_at": time.time()}
    try:
        async with httpx.AsyncClient(timeout=25) as client:
            response = await client.get(f"{BACKEND}/price/{sku}")
            return response.raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise BackendError(str(error)) from error


@app.get("/price/{sku}")
async def price(sku: str) -> dict[str, object]:
    return await get_price(sku)


@app.get("/role/{sku}")
async def role(sku: str, response: Response) -> dict[str, object]:
    """The same flight, and how this request came by its value."""
    outcome = await merger.flight(f"price:{sku}", get_price.uncoalesced, sku)
    response.headers["X-Uniflight-Role"] = outcome.role.value
    response.headers["X-Leader-Pid"] = str(outcome.leader_pid)
    return outcome.value


@app.middleware("http")
async def name_worker(request: Request, call_next) -> Response:
    response = await call_next(request)
    response.headers["X-Worker-Pid"] = str(os.getpid())
    return response


@app.exception_handler(FlightTimeout)
async def too_slow(request: Request, error: FlightTimeout) -> JSONResponse:
    return JSONResponse({"error": "the backend is too slow"}, 504)


@app.exception_handler(BackendError)
async def bad_gateway(request: Request, error: BackendError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 502)
