"""The example application under real gunicorn, with workers that are killed, hang and retire.

The backend holds its answer until the table shows that everybody waits, so what overlaps is
certain. A sync worker serves one request at a time: followers in the table are as many workers.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future

from gunicorn_server import Backend, Load, Reply, Site, wait_until

from uniflight_mp import Merger

Serve = Callable[..., Site]

SYNC = ("--workers", "4")
# As many connections as threads: no worker can accept a request that it does not serve.
GTHREAD = ("--workers", "4", "--worker-class", "gthread", "--keep-alive", "0")
THREADS_10 = ("--threads", "10", "--worker-connections", "10")
THREADS_2 = ("--threads", "2", "--worker-connections", "2")


def replies_of(futures: list[Future[Reply]]) -> list[Reply]:
    return [future.result() for future in futures]


def burst(site: Site, backend: Backend, *paths: str) -> list[Reply]:
    """Send requests for one sku, and let the backend answer when all of them wait."""
    sku = paths[0].rpartition("/")[2]
    backend.hold()
    sent = site.clients.send(*paths)
    site.table.wait_for_followers(sku, len(paths) - 1)
    backend.release()
    return replies_of(sent)


def assert_all_got(replies: list[Reply], sku: str, serial: int) -> None:
    assert [(reply.status, reply.value, reply.error) for reply in replies] == [
        (200, {"sku": sku, "serial": serial}, "")
    ] * len(replies)


def assert_fresh_burst_works(site: Site, backend: Backend, count: int = 4) -> None:
    before = backend.requests.count("fresh")  # those of killed workers may still arrive
    replies = burst(site, backend, *["/price/fresh"] * count)
    assert backend.requests.count("fresh") == before + 1
    serial = len(backend.requests) - backend.requests[::-1].index("fresh")
    assert_all_got(replies, "fresh", serial)


def test_concurrent_requests_in_4_sync_workers_reach_the_backend_once(
    serve: Serve, backend: Backend
):
    site = serve(*SYNC)
    for round_ in range(1, 51):
        replies = burst(site, backend, "/role/1", "/role/1", "/price/1", "/price/1")
        assert_all_got(replies, "1", round_)
        assert len({reply.worker_pid for reply in replies}) == 4
        assert len(backend.requests) == round_
        site.table.check_empty()
    stats = Merger(site.table.name).stats()
    assert (stats.leaders, stats.followers, stats.takeovers) == (50, 150, 0)
    assert not any(stats.solo.values())


def test_40_concurrent_requests_in_gthread_workers_reach_the_backend_once(
    serve: Serve, backend: Backend
):
    site = serve(*GTHREAD, *THREADS_10)
    for round_ in range(1, 6):
        replies = burst(site, backend, *["/role/1"] * 40)
        assert_all_got(replies, "1", round_)
        assert sorted(reply.role for reply in replies) == ["follower"] * 39 + ["leader"]
        assert len({reply.worker_pid for reply in replies}) == 4
        assert len(backend.requests) == round_
        site.table.check_empty()


def test_a_failure_of_the_backend_reaches_every_request_and_is_not_remembered(
    serve: Serve, backend: Backend
):
    site = serve(*SYNC)
    backend.status = 500
    replies = burst(site, backend, *["/price/1"] * 4)
    assert [reply.status for reply in replies] == [502] * 4
    assert {str(reply.value) for reply in replies} == {
        "{'error': 'HTTP Error 500: Internal Server Error'}"
    }
    assert len(backend.requests) == 1
    backend.status = 200
    assert_fresh_burst_works(site, backend)
    site.table.check_empty()


def test_when_the_leading_sync_worker_is_killed_the_others_get_the_value_by_one_takeover(
    serve: Serve, backend: Backend
):
    site = serve(*SYNC)
    backend.hold()
    sent = site.clients.send(*["/role/1"] * 4)
    leader_pid = site.table.wait_for_followers("1", 3).leader_pid
    assert leader_pid in site.gunicorn.workers()
    wait_until(lambda: len(backend.requests) == 1, "the leader asks the backend")

    os.kill(leader_pid, signal.SIGKILL)
    wait_until(lambda: len(backend.requests) == 2, "a follower asks the backend anew")
    second = site.table.wait_for_followers("1", 2)
    assert second.takeovers == 1
    assert second.leader_pid != leader_pid
    backend.release()

    answered = assert_lost(replies_of(sent), 1)
    assert_all_got(answered, "1", 2)
    assert sorted(reply.role for reply in answered) == ["follower", "follower", "leader"]
    assert leader_pid not in {reply.worker_pid for reply in answered}
    assert len(backend.requests) == 2
    site.table.check_empty()
    assert_fresh_burst_works(site, backend)  # with the worker that replaces the dead one
    assert leader_pid not in site.gunicorn.workers()
    site.table.check_empty()


def test_when_a_leading_gthread_worker_is_killed_only_its_own_requests_fail(
    serve: Serve, backend: Backend
):
    site = serve(*GTHREAD, *THREADS_10)
    backend.hold()
    sent = site.clients.send(*["/role/1"] * 40)
    leader_pid = site.table.wait_for_followers("1", 39).leader_pid
    wait_until(lambda: len(backend.requests) == 1, "the leader asks the backend")

    os.kill(leader_pid, signal.SIGKILL)
    wait_until(lambda: len(backend.requests) == 2, "a follower asks the backend anew")
    backend.release()

    answered = assert_lost(replies_of(sent), 10)
    assert_all_got(answered, "1", 2)
    assert sorted(reply.role for reply in answered) == ["follower"] * 29 + ["leader"]
    assert len(backend.requests) == 2
    assert_fresh_burst_works(site, backend, count=40)
    site.table.check_empty()


def assert_lost(replies: list[Reply], count: int) -> list[Reply]:
    """Check that so many clients lost their connection, and return the other replies."""
    lost = [reply for reply in replies if reply.status == 0]
    assert len(lost) == count, replies
    assert all("Remote" in reply.error or "Connection" in reply.error for reply in lost), lost
    return [reply for reply in replies if reply.status != 0]


def test_a_leader_that_gunicorn_aborts_for_its_timeout_is_replaced_by_a_follower(
    serve: Serve, backend: Backend
):
    site = serve(*SYNC, "--timeout", "6")
    assert_fresh_burst_works(site, backend)  # all four have booted
    backend.hold()
    sent = site.clients.send("/role/1")
    leader_pid = site.table.wait_for_followers("1", 0).leader_pid
    # A sync worker's time runs while it follows, too. With the master stopped meanwhile, the
    # leader's is over and the followers' has only begun when the master looks.
    site.gunicorn.signal(signal.SIGSTOP)
    try:
        wait_until(lambda: site.table.flights()[0].age > 6.2, "the leader is overdue")
        sent += site.clients.send(*["/role/1"] * 3)
        site.table.wait_for_followers("1", 3)
    finally:
        site.gunicorn.signal(signal.SIGCONT)
    wait_until(lambda: backend.requests[1:] == ["1", "1"], "a follower asks the backend anew")
    backend.release()

    replies = replies_of(sent)
    assert replies[0].status in (0, 500)
    assert_all_got(replies[1:], "1", 3)
    assert sorted(reply.role for reply in replies[1:]) == ["follower", "follower", "leader"]
    assert len(backend.requests) == 3
    site.table.check_empty()
    assert f"WORKER TIMEOUT (pid:{leader_pid})" in site.gunicorn.log()
    assert_fresh_burst_works(site, backend)


def test_a_frozen_leader_that_gunicorn_kills_for_its_timeout_is_replaced_by_a_follower(
    serve: Serve, backend: Backend
):
    site = serve(*GTHREAD, *THREADS_2, "--timeout", "6")
    backend.hold()
    sent = site.clients.send(*["/role/1"] * 8)
    leader_pid = site.table.wait_for_followers("1", 7).leader_pid
    wait_until(lambda: len(backend.requests) == 1, "the leader asks the backend")
    os.kill(leader_pid, signal.SIGSTOP)  # ABRT does nothing to it, KILL does
    wait_until(lambda: len(backend.requests) == 2, "a follower asks the backend anew")
    backend.release()

    answered = assert_lost(replies_of(sent), 2)
    assert_all_got(answered, "1", 2)
    assert len(backend.requests) == 2
    site.table.check_empty()
    assert f"WORKER TIMEOUT (pid:{leader_pid})" in site.gunicorn.log()
    assert_fresh_burst_works(site, backend, count=8)


def test_workers_that_are_all_aborted_at_once_leave_nothing_behind(serve: Serve, backend: Backend):
    site = serve(*SYNC, "--timeout", "5")
    backend.hold()
    sent = site.clients.send(*["/price/1"] * 4)
    site.table.wait_for_followers("1", 3)
    assert {reply.status for reply in replies_of(sent)} <= {0, 500}  # all of them end
    assert_fresh_burst_works(site, backend)
    site.table.check_empty_after_sweep()


def test_a_graceful_reload_lets_old_and_new_workers_share_a_flight(serve: Serve, backend: Backend):
    site = serve(*SYNC)
    assert_fresh_burst_works(site, backend)  # all four have booted
    old = site.gunicorn.workers()
    backend.hold()
    sent = site.clients.send("/role/1", "/role/1")
    assert site.table.wait_for_followers("1", 1).leader_pid in old

    site.gunicorn.signal(signal.SIGHUP)
    wait_until(
        lambda: len(site.gunicorn.workers() & old) == 2 and len(site.gunicorn.workers()) == 6,
        lambda: f"2 busy old and 4 new workers; {site.gunicorn.workers()}, of these old: {old}",
    )
    sent += site.clients.send("/role/1", "/role/1")
    site.table.wait_for_followers("1", 3)
    backend.release()

    replies = replies_of(sent)
    assert_all_got(replies, "1", 2)
    assert [reply.worker_pid in old for reply in replies] == [True, True, False, False]
    wait_until(lambda: not site.gunicorn.workers() & old, "the old workers end")
    assert_fresh_burst_works(site, backend)
    site.table.check_empty()


def test_no_request_fails_while_workers_are_reloaded_under_load(serve: Serve, backend: Backend):
    site = serve(*SYNC)
    assert_fresh_burst_works(site, backend)
    old = site.gunicorn.workers()
    backend.work = 0.005
    with Load(site.port) as load:
        wait_until(lambda: len(load.replies) >= 40, "40 replies before the reload")
        site.gunicorn.signal(signal.SIGHUP)
        wait_until(lambda: not site.gunicorn.workers() & old, "the old workers end")
        enough = len(load.replies) + 40
        wait_until(lambda: len(load.replies) >= enough, "40 replies after the reload")
    assert_sound(load.replies, len(backend.requests) - 1)
    site.table.check_empty()


def test_no_request_fails_while_gthread_workers_reach_max_requests_under_load(
    serve: Serve, backend: Backend
):
    check_max_requests(serve(*GTHREAD, *THREADS_2, "--max-requests", "15"), backend)


def test_no_request_fails_while_sync_workers_reach_max_requests_under_load(
    serve: Serve, backend: Backend
):
    check_max_requests(serve(*SYNC, "--max-requests", "10"), backend)


def check_max_requests(site: Site, backend: Backend) -> None:
    backend.work = 0.005
    with Load(site.port) as load:
        wait_until(
            lambda: len({reply.worker_pid for reply in load.replies}) >= 12,
            lambda: f"12 workers took part; {len(load.replies)} replies",
        )
    assert_sound(load.replies, len(backend.requests))
    site.table.check_empty()


def assert_sound(replies: list[Reply], backend_requests: int) -> None:
    """All succeeded, each execution is a request of the backend, and no value is stale."""
    assert [reply for reply in replies if reply.status != 200] == []
    executions = [reply for reply in replies if reply.role != "follower"]
    assert len(executions) == backend_requests
    ended = {reply.value["serial"]: reply.ended for reply in executions}
    assert len(ended) == backend_requests
    assert [reply for reply in replies if reply.started > ended[reply.value["serial"]]] == []
