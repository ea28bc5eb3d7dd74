"""The client example: processes of their own that want one page."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from gunicorn_server import EXAMPLES, Backend, TableView, wait_until

from uniflight_mp import Merger

pytest.importorskip("httpx", reason="httpx is not installed")


def test_8_processes_download_a_page_once(backend: Backend, table_name: str):
    environment = {**os.environ, "PAGES_TABLE": table_name, "NO_PROXY": "127.0.0.1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, str(EXAMPLES / "httpx_client.py"), f"{backend.url}/page/1"]
    Merger(table_name).close()
    table = TableView(table_name)
    backend.hold()
    clients = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    try:
        wait_until(
            lambda: [flight.followers for flight in table.flights()] == [7],
            lambda: f"7 follow: {table.flights()}",
        )
    finally:
        backend.release()
        answers = [client.communicate(timeout=60)[0] for client in clients]
    assert backend.requests == ["1"]
    leaders = {answer.rpartition(" by ")[2].strip() for answer in answers}
    assert len(leaders) == 1
    assert {client.pid for client in clients} >= {int(pid) for pid in leaders}
    assert [answer.split(": ")[1].split(",")[0] for answer in answers] == ["200"] * 8
    table.check_empty()
