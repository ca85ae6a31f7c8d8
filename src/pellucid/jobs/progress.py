"""Progress on the terminal, for jobs; the library itself only calls `callable(done, total)`."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[int, int], None]


def say(text: str) -> None:
    """One line for the person who waits, on standard error: standard output carries results only."""
    typer.echo(text, err=True)


@contextmanager
def progress(title: str) -> Generator[Report]:
    """A bar on a terminal; in a log, one line at each quarter."""
    if not sys.stderr.isatty():
        yield _quarters(title)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show


def _quarters(title: str) -> Report:
    shown: set[int] = set()

    def show(done: int, total: int) -> None:
        quarter = 4 * done // max(total, 1)
        if quarter not in shown and quarter > 0:
            shown.add(quarter)
            say(f"{title}: {done} of {total}")

    return show
