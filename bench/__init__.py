"""Benchmarks: what a call, a wake-up and a takeover cost, beside floors and rivals.

    python -m bench                        every figure, about ten minutes
    python -m bench --quick                fewer rounds, a minute: does it run at all?
    python -m bench wake_up takeover       some figures
    python -m bench --save-baseline NAME   keep the results as NAME
    python -m bench --baseline NAME        compare with what was kept as NAME
    python -m bench --json results.json    the same numbers, for programs
    python -m bench.document               docs/benchmarks.md and its pictures, of the last run

Each figure is a module with a docstring that says what is timed, from where to where. All rows
of a figure come from one run, so that their ratios mean something on a busy machine too; the
numbers by themselves mean little without the environment in the first line.

    single_call           an uncontended ``execute``
    single_call_async     the same, awaited
    single_call_at_once   the same in two threads, in two processes, at the same time
    scopes                calls under each scope; asking for the partition, making its table
    high_contention_100   100 callers want one key: tasks, threads, threads of 5 processes
    distributed_10x10     100 callers want 10 keys: tasks, threads, threads of 5 processes
    wake_up               from the end of the function to a follower that has the value
    wake_up_async         the same, the follower a coroutine
    wake_up_crowd         up to 100 followers; what they cost the leader; a busy interpreter
    large_result          results of 4 KiB to 64 MiB
    throughput            calls per second of 2 to 16 processes over 1 to 10,000 keys
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

Results are kept under ``build/bench/NAME``, one file a figure, with what is known of the machine;
NAME is ``last`` if nothing else is said. They are pyperf's Benchmarks (``saved.py``), so its
``stats``, ``hist`` and ``compare_to`` can be run on them. Its runner is not used: it times one
function in one process, again and again, and starts other processes one after the other; a sample
here is made by several processes that wait for each other and die on cue. Nor is its comparison,
which is of means; ``ratios.py`` says why and how medians are compared.

It reports and never gates: the exit code is 0 if everything ran.
"""
