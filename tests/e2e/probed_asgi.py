"""The FastAPI example, and a route that tells how many tasks of this worker wait for a price."""

from __future__ import annotations

from fastapi_app import app, merger

__all__ = ["app"]


@app.get("/waiting")
async def waiting() -> dict[str, int]:
    return {"waiting": sum(len(flight.tickets) for flight in merger._desk()._flights.values())}
