"""A web application whose workers ask a slow backend once, however many requests wait for it.

    pip install uniflight-mp gunicorn
    cd examples
    gunicorn --workers 4 gunicorn_app                   # sync workers
    gunicorn --workers 4 --threads 10 gunicorn_app      # gthread workers
    gunicorn --workers 4 --preload gunicorn_app         # loaded once, before the fork

While one of these runs, ask for one price from four terminals' worth of clients at once. All
four take two seconds, and the backend is called once:

    seq 4 | xargs -P 4 -I {} curl -s -D - http://127.0.0.1:8000/role/42
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterable

from uniflight_mp import FlightTimeout, Merger

BACKEND = os.environ.get("PRICES_BACKEND")  # such as http://127.0.0.1:9000; none: a pretence

# One table for all workers, which find it by its name. At module level: with --preload it is
# opened once, before the fork, and works in every worker. The timeout is shorter than
# gunicorn's (30 s): a request that waits too long gets an answer instead of killing its worker.
merger = Merger(os.environ.get("PRICES_TABLE", "example-prices"), timeout=25)


class BackendError(Exception):
    """Made from nothing but its arguments, so every waiting worker raises it as well."""


@merger.coalesce(key="price:{sku}")
def get_price(sku: str) -> dict[str, object]:
    """Ask the backend. Calls for one sku that overlap, in any worker, do this once."""
    if BACKEND is None:
        time.sleep(2)
        return {"sku": sku, "price": "19.90", "made_at": time.time()}
    try:
        with urllib.request.urlopen(f"{BACKEND}/price/{sku}", timeout=25) as response:
            return json.load(response)
    except (OSError, ValueError) as error:  # URLError and HTTPError are OSErrors
        raise BackendError(str(error)) from error


def application(environ: dict, start_response: Callable) -> Iterable[bytes]:
    route, _, sku = environ["PATH_INFO"].lstrip("/").partition("/")
    headers = [("Content-Type", "application/json"), ("X-Worker-Pid", str(os.getpid()))]
    status, body = "200 OK", {}
    try:
        if route == "price" and sku:
            body = get_price(sku)
        elif route == "role" and sku:  # the same flight, and how this request came by its value
            outcome = merger.flight(f"price:{sku}", get_price.uncoalesced, sku)
            body = outcome.value
            headers.append(("X-Uniflight-Role", outcome.role.value))
            headers.append(("X-Leader-Pid", str(outcome.leader_pid)))
        else:
            status, body = "404 Not Found", {"error": "try /price/42 or /role/42"}
    except FlightTimeout:  # another request is still waiting for the backend
        status, body = "504 Gateway Timeout", {"error": "the backend is too slow"}
    except BackendError as error:
        status, body = "502 Bad Gateway", {"error": str(error)}
    start_response(status, headers)
    return [json.dumps(body).encode() + b"\n"]
