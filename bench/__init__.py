"""Benchmarks: what a call, a wake-up and a takeover cost, beside floors and rivals.

    python -m bench                        every figure, about six minutes
    python -m bench --quick                fewer rounds, some 40 s: does it run at all?
    python -m bench wake_up takeover       some figures
    python -m bench --json results.json    the same numbers, for programs

Each figure is a module with a docstring that says what is timed, from where to where. All rows
of a figure come from one run, so that their ratios mean something on a busy machine too; the
numbers by themselves mean little without the environment in the first line.

    single_call           an uncontended ``execute``
    single_call_async     the same, awaited
    high_contention_100   100 tasks of one event loop want one key
    distributed_10x10     100 tasks of one event loop want 10 keys; 100 threads of 5 processes
    wake_up               from the end of the function to a follower that has the value
    wake_up_async         the same, the follower a coroutine
    takeover              from the leader's SIGKILL to the successor's function
    idle                  a loop that waits for 1,000 flights, and for none
    memory                the table, and what a process needs besides
    import_time           ``import uniflight_mp`` in a fresh interpreter
    peers                 a table of us and of everybody who offers the same; all of them after
                          ``make bench-peers``, else those that are installed

Columns: ``p50``, ``p95`` and ``p99`` of ``n`` samples; ``floor``, the p50 of the row marked
``floor`` above, which is the mechanism below us without us; ``x floor``, p50 divided by it;
``target``, for p50 if nothing else is said. Rows marked ``rival`` do the same job in another
way. In-process libraries take part if they are installed, as ``make bench`` installs them
(``pip install --group bench``). The floors in C (``floor.c``, compiled into a temporary directory,
with the core's own sources) need a C compiler; without one they are missing.

It reports and never gates: the exit code is 0 if everything ran.
"""
