"""Benchmarks: what a call, a wake-up and a takeover cost, beside floors and rivals.

    python -m bench                        every figure, about three minutes
    python -m bench --quick                fewer rounds, under 20 s: does it run at all?
    python -m bench wake_up takeover       some figures
    python -m bench --json results.json    the same numbers, for programs

Each figure is a module with a docstring that says what is timed, from where to where. All rows
of a figure come from one run, so that their ratios mean something on a busy machine too; the
numbers by themselves mean little without the environment in the first line.

    single_call   an uncontended ``execute``
    wake_up       from the end of the function to a follower that has the value
    takeover      from the leader's SIGKILL to the successor's function
    memory        the table, and what a process needs besides
    import_time   ``import uniflight_mp`` in a fresh interpreter

Columns: ``p50``, ``p95`` and ``p99`` of ``n`` samples; ``floor``, the p50 of the row marked
``floor`` above, which is the mechanism below us without us; ``x floor``, p50 divided by it;
``target``, for p50 if nothing else is said. Rows marked ``rival`` do the same job in another
way. ``flightlock`` and ``moka-py`` take part if they are installed. The floors are C
(``floor.c``, compiled into a temporary directory, with the core's own sources) and need a C
compiler; without one they are missing.

It reports and never gates: the exit code is 0 if everything ran.
"""
