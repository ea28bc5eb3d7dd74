"""A client whose processes download a page once, however many of them want it at a time.

    pip install uniflight-mp httpx
    cd examples
    seq 8 | xargs -P 8 -I {} python httpx_client.py https://www.python.org/

Eight processes ask for one page at once; one downloads it, the others receive what it got:
each says which process that was. The next one that asks after that downloads it again.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass

import httpx

from uniflight_mp import AsyncMerger, MsgpackCodec


@dataclass
class Page:
    """What is worth sharing of a response; the response itself belongs to its connection."""

    status: int
    content_type: str
    content: bytes


class PageClient:
    """Gets pages through httpx. Requests for one page that overlap, in any process, are one."""

    def __init__(self, client: httpx.AsyncClient, merger: AsyncMerger) -> None:
        self._client = client
        self._merger = merger

    async def get(self, url: str) -> tuple[Page, int]:
        """Return a page, and the pid of the process that downloaded it.

        Raises:
            ConnectionError: it cannot be had. Whoever waited for the same page gets this, too.
        """
        # Whatever changes the answer belongs into the key: a language, a user, a tenant.
        outcome = await self._merger.flight(("GET", url), self._download, url)
        return outcome.value, outcome.leader_pid

    async def _download(self, url: str) -> Page:
        try:
            response = await self._client.get(url, follow_redirects=True)
        except httpx.HTTPError as error:
            # httpx's own exceptions hold the request, and cannot be made again elsewhere.
            raise ConnectionError(f"{url}: {error!r}") from error
        return Page(
            response.status_code, response.headers.get("Content-Type", ""), response.content
        )


async def main(url: str) -> None:
    name = os.environ.get("PAGES_TABLE", "example-pages")
    merger = AsyncMerger(name, timeout=30, codec=MsgpackCodec().register(Page))
    async with httpx.AsyncClient(timeout=20) as client, merger:
        page, leader_pid = await PageClient(client, merger).get(url)
    print(f"{os.getpid()}: {page.status}, {len(page.content)} bytes, by {leader_pid}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
