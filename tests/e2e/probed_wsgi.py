"""The gunicorn example, and a route that tells how many greenlets of this worker wait."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable

from gunicorn_app import application as example
from gunicorn_app import merger


def application(environ: dict, start_response: Callable) -> Iterable[bytes]:
    if environ["PATH_INFO"] != "/waiting":
        return example(environ, start_response)
    from uniflight_mp.green import hub_desk

    flights = hub_desk(merger._segment)._flights.values()
    body = json.dumps({"waiting": sum(len(flight.tickets) for flight in flights)}).encode()
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("X-Worker-Pid", str(os.getpid())),
    ]
    start_response("200 OK", headers)
    return [body]
