"""Contract: finalizers that use the library at any moment, and the end of the interpreter."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap

from uniflight_mp import Merger


def never():
    raise AssertionError("the function of a follower was called")


def give(value):
    return value


def usage(merger):
    return merger._segment.table.usage()[:2]


# ---- finalizers -------------------------------------------------------------------------


class Finalized:
    """Uses the library when it is collected, whatever the library is doing then."""

    merger = None
    runs = 0

    def __init__(self):
        self.cycle = self

    def __del__(self):
        Finalized.runs += 1
        self.merger.execute(("finalizer", Finalized.runs), give, 1)
        self.merger.forget("key")


def collect_all_the_time(table_name):
    Finalized.merger = merger = Merger(table_name)
    gc.set_threshold(1, 1, 1)
    for number in range(500):
        Finalized()
        assert merger.execute(("key", (number,)), give, [number]) == [number]
    gc.set_threshold(700, 10, 10)
    gc.collect()
    return Finalized.runs, usage(merger)


def test_finalizers_may_use_the_library_at_any_moment(table_name, hands):
    call = hands.start(collect_all_the_time, table_name, where="spawned")
    assert call.result() == (500, (0, 0))


def test_a_value_whose_finalizer_uses_the_library_can_be_shared(merger, hands, leading, followed):
    class Value:
        def __del__(self):
            used.append(merger.execute("key", give, "from the finalizer"))

    used = []
    leader = leading(merger, "key")
    call = hands.start(follow_and_drop, merger)
    followed(merger)
    leader.finish(Value())
    call.join()
    call._message = call._thread.message = leader._answer = None
    leader._call._message = leader._call._thread.message = None
    gc.collect()
    assert used == ["from the finalizer"]


def follow_and_drop(merger):
    merger.execute("key", never)


# ---- the end of the interpreter ---------------------------------------------------------

DAEMONS = """
import sys, threading, time
from uniflight_mp import Merger

merger = Merger({name!r})
for key in ("led", "led", "followed"):
    threading.Thread(target=merger.execute, args=(key, time.sleep, 60), daemon=True).start()
while len(merger.flights()) < 2 or not any(f.followers for f in merger.flights()):
    time.sleep(0.001)
print("ready", flush=True)
sys.stdin.readline()
"""


def test_a_process_that_ends_with_daemon_threads_releases_what_they_led(
    table_name, hands, leading, followed
):
    merger = Merger(table_name)
    leader = leading(merger, "followed")
    script = textwrap.dedent(DAEMONS.format(name=table_name))
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "ready\n"
        call = hands.start(merger.flight, "led", give, "taken over", where="forked")
        followed(merger, 2, "led")
        errors = child.communicate("\n", timeout=60)[1]
    finally:
        child.kill()
        child.wait()
    assert (child.returncode, errors) == (0, "")
    assert call.result().value == "taken over"
    assert leader.outcome(1).followers == 0


AT_EXIT = """
import atexit
from uniflight_mp import Merger

merger = Merger({name!r})
merger.execute("key", int)
atexit.register(lambda: print(merger.execute("key", int, 5)))
class Late:
    def __del__(self, merger=merger):
        print(merger.execute("key", int, 6))
late = Late()
"""


def test_calls_work_until_the_interpreter_is_gone(table_name):
    Merger(table_name)
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT.format(name=table_name)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n6\n", "")
