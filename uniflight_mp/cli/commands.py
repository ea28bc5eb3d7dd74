"""The command line: look at tables, clean up after the dead, find out what is wrong."""

from __future__ import annotations

import errno
import json
import time
from dataclasses import asdict
from typing import Any, Final

import click
from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from .. import segment, shmfile
from ..errors import UniflightError
from . import identity
from .doctor import CHECKS, examine
from .identity import printable
from .rendering import new_console, render_list, render_table, size_of, title_of
from .reports import Found, find, find_named, report_on

__all__ = ["main"]

_REFRESH_SECONDS: Final = 0.5
_DISTRIBUTION: Final = "uniflight-mp"


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what the package or the system refuses becomes one line on stderr."""
        try:
            return super().invoke(ctx)
        except (UniflightError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # `| head` has seen enough; click ends quietly
            raise click.ClickException(printable(str(error), 1000)) from error


def _table_name(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    try:
        return None if name is None else shmfile.check_name(name)
    except ValueError as error:
        raise click.BadParameter(printable(str(error), 300)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=_DISTRIBUTION, prog_name=_DISTRIBUTION)
def main() -> None:
    """Look at and look after the tables of uniflight-mp in /dev/shm.

    Exit status: 0 done; 1 not found, refused, or a problem reported; 2 wrong usage.
    """


@main.command()
@click.argument("name", callback=_table_name, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; see above.")
@click.option("--watch", is_flag=True, help="Refresh twice a second until Ctrl-C.")
def inspect(name: str | None, as_json: bool, watch: bool) -> None:
    """List this user's tables, or show one: flights, processes, counters, limits.

    Reads only: takes no lock, changes nothing, never makes a table. What it shows is a picture
    of a moving thing.

    With --json the document is {"version": 1, "time": seconds since 1970, "tables": [...]}. A
    table has name, scope, partition, segment, marks (damaged, foreign_pid_namespace,
    other_layout, unreadable, gone), detail, bytes, extra_segments, extra_bytes, created (seconds
    since 1970), creator_pid, flight_count, follower_count, process_count (living ones); null is
    unknown. With NAME, one for each scope, partition and PID namespace, it has also:

    \b
    flights    list of key, key_type, state (running, orphaned, done),
               forgotten, leader_pid, leader_thread, leader_state,
               leader_command, age (seconds), followers, takeovers,
               result_bytes
    processes  list of pid, state, threads, leads, command
    counters   leaders, followers, solo (by reason), takeovers, failures,
               timeouts, fenced, published_bytes
    limits     flights, waiters, waiters_per_group, threads,
               inline_bytes, result_bytes
    in_use     flights, waiters, threads

    A key is JSON if it is a str, int, float, bool or None, else text as Python shows it;
    key_type is its Python type, or "description" where the table does not hold the key itself.
    The state of a process is alive, stopped, zombie, dead or unknown.
    """
    if as_json and watch:
        raise click.UsageError("--json and --watch exclude each other")
    tables = find(None) if name is None else find_named(name)
    if as_json:
        reports = [asdict(report_on(found, name is not None)) for found in tables]
        document = {"version": 1, "time": time.time(), "tables": reports}
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    elif watch:
        _watch(name)
    else:
        new_console().print(_picture(name, tables))


def _picture(name: str | None, tables: list[Found]) -> RenderableType:
    reports = [report_on(found, name is not None) for found in tables]
    if name is None:
        return render_list(reports)
    if not reports:
        return Text(f"Table {name} is gone; waiting for it.")
    return Group(*map(render_table, reports))


def _watch(name: str | None) -> None:
    console = new_console()
    try:
        if not console.is_terminal:
            while True:
                console.print(_picture(name, find(name)))
                time.sleep(_REFRESH_SECONDS)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_picture(name, find(name)), refresh=True)
                time.sleep(_REFRESH_SECONDS)
    except KeyboardInterrupt:
        pass


@main.command()
@click.argument("name", callback=_table_name)
def reap(name: str) -> None:
    """Free what dead processes left in a table, and tell what it was.

    The table does this itself whenever somebody opens it, waits in it or needs room; this is
    for a table that nobody has used since. Only in the table's own PID namespace.
    """
    tables = [found for found in find_named(name) if not found.is_foreign]
    if not tables:
        raise click.ClickException(f"table {name!r} is of another PID namespace: reap it there")
    complete = True
    for found in tables:
        complete &= _reap_one(found)
    if not complete:
        raise click.exceptions.Exit(1)


def _reap_one(found: Found) -> bool:
    title = title_of(found.name)
    if found.is_other_layout:
        click.echo(f"{title}: of another layout version, left alone: destroy it if nobody uses it")
        return True
    done = segment.reap(found.name.segment, found.name.name)
    if done is None:
        click.echo(f"{title}: removed meanwhile")
        return True
    click.echo(
        f"{title}: freed {done.flights} flights, {done.waiters} waiters and {done.results} extra "
        "segments of the dead"
    )
    if not done.complete:
        click.echo(
            f"{title}: not everything could be reached: the table is damaged, or a stopped "
            "process holds a lock of it (see 'uniflight-mp inspect')",
            err=True,
        )
    return done.complete


@main.command()
@click.argument("name", callback=_table_name)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Even if living processes use it.")
@click.option("--foreign", is_flag=True, help="Also those of other PID namespaces.")
def destroy(name: str, yes: bool, force: bool, foreign: bool) -> None:
    """Remove a table, in all its scopes and partitions, and all that belongs to it.

    Refused while living processes use it. With --force they finish their calls on the old table
    and go on with a new one; meanwhile a key can be run once in each. Who uses a table of
    another PID namespace cannot be told, so that needs --force as well.
    """
    every = find_named(name)
    tables = [found for found in every if foreign or not found.is_foreign]
    if not tables:
        raise click.ClickException(
            f"table {name!r} is of another PID namespace: destroy it there, or with --foreign"
        )
    if not force:
        for found in tables:
            _refuse_if_used(found)
    if not yes:
        what = f"{name} ({size_of(sum(found.size for found in tables))})"
        click.confirm(f"Destroy table {what}?", abort=True)
    removed = sum(segment.destroy(found.name.segment, name) for found in tables)
    click.echo(f"destroyed {removed} segment{'s' if removed != 1 else ''} of table {name}")
    if len(tables) < len(every):
        click.echo(f"{len(every) - len(tables)} of other PID namespaces left alone (--foreign)")


def _refuse_if_used(found: Found) -> None:
    users = [identity.look_up(pid) for pid in sorted(found.mapped_by)]
    if found.is_foreign and not users:
        raise click.ClickException(
            f"table {found.name.name!r} is of another PID namespace, so who uses it cannot be "
            "told from here; --force destroys it all the same"
        )
    if not found.is_foreign and not found.is_other_layout:
        users += _recorded_users(found)
    living = {user.pid: user for user in users if not user.is_dead}
    if living:
        shown = ", ".join(
            f"{user.pid} ({printable(user.command, 60) or 'unknown'})"
            for user in list(living.values())[:5]
        )
        more = f" and {len(living) - 5} more" if len(living) > 5 else ""
        raise click.ClickException(
            f"table {found.name.name!r} is used by {shown}{more}; end them first, or --force"
        )


def _recorded_users(found: Found) -> list[identity.Process]:
    """List the processes with a record in the table, for those that may not be looked into."""
    try:
        table = segment.attach_read_only(found.name.segment, found.name.name)
    except UniflightError:
        return []  # who uses it is told by the mappings; it is destroyed for being unreadable
    records = {(pid, started) for pid, _, started in table.threads()} if table else set()
    return [identity.look_up(pid, started) for pid, started in records]


@main.command()
@click.option(
    "--seconds",
    type=click.FloatRange(0.05, 5.0),
    default=0.2,
    show_default=True,
    help="How long the expensive function takes.",
)
@click.option(
    "--async", "in_loops", is_flag=True, help="In event loops, with 5 tasks for each key."
)
def demo(seconds: float, in_loops: bool) -> None:
    """Let 8 processes want the same 10 keys at once, kill a leader, and count what ran.

    Exit status 1 if a key ran more often than it should, or a process got a wrong value.
    """
    from .demo import TASKS, run, work, work_in_loop

    kind = (work_in_loop, TASKS) if in_loops else (work, 1)
    if not run(new_console(), seconds, *kind):
        raise click.exceptions.Exit(1)


@main.command()
def doctor() -> None:
    """Check what uniflight-mp needs on this machine, and tell what to do.

    Makes a table of its own, kills a process that leads in it, and removes it again.
    """
    findings = [finding for check in CHECKS for finding in examine(check)]
    grid = Grid(box=box.SIMPLE, padding=(0, 1, 0, 0), show_header=False, pad_edge=False)
    styles = {"OK": "green", "WARN": "yellow", "PROBLEM": "bold red"}
    for status, check, found, advice in findings:
        text = Text(printable(found, 600))
        if advice:
            text.append(f"\n-> {advice}", style="bold")
        grid.add_row(Text(status, style=styles[status]), Text(check), text)
    new_console().print(grid)
    if any(finding.status == "PROBLEM" for finding in findings):
        raise click.exceptions.Exit(1)
