from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gunicorn_server import Backend, Clients, Gunicorn, Site, TableView

from uniflight_mp.segment import destroy
from uniflight_mp.shmfile import segment_name


@pytest.fixture
def table_name() -> Iterator[str]:
    name = f"e2e-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    yield name
    destroy(segment_name(name), name)


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.close()


@pytest.fixture(params=[False, True], ids=["each-worker-loads", "preload"])
def serve(
    request: pytest.FixtureRequest, tmp_path: Path, table_name: str, backend: Backend
) -> Iterator[Callable[..., Site]]:
    """Start gunicorn with the given options; each test twice, with and without --preload."""
    started: list[Gunicorn] = []
    clients: list[Clients] = []
    tables: list[TableView] = []

    def start(*options: str) -> Site:
        preload = ["--preload"] if request.param else []
        gunicorn = Gunicorn(tmp_path, table_name, backend, *preload, *options)
        started.append(gunicorn)
        port = gunicorn.wait_until_ready()
        clients.append(Clients(port))
        tables.append(TableView(table_name))
        return Site(gunicorn, port, clients[-1], tables[-1])

    yield start
    backend.release()
    exit_codes = []
    try:
        for gunicorn in started:
            exit_codes.append(gunicorn.stop())
    finally:
        for pool in clients:
            pool.close()
        for gunicorn in started:
            print(gunicorn.log())  # pytest shows it if the test failed
    assert exit_codes == [0] * len(started)
    for table in tables:
        table.check_empty_after_sweep()
