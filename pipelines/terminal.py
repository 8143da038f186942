"""What commands print on: one that did its work does not fail because the output is closed or its locale lacks a sign.

Not here: what is printed (`cli` and its siblings).
"""

from __future__ import annotations

import os
import sys
from typing import Final, NoReturn

import typer
from rich.console import Console

for _name in ("stdout", "stderr"):
    _stream = getattr(sys, _name)
    if _stream is None:  # whoever started us closed it
        setattr(sys, _name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
    elif hasattr(_stream, "reconfigure"):
        _stream.reconfigure(errors="replace")

WIDTH: Final = None if sys.stdout.isatty() else 120
"""A log is no terminal of 80 columns."""


def console(stderr: bool = False, soft_wrap: bool = False) -> Console:
    """What prints text as it is: in a path, a bracket is no markup and a colon no emoji."""
    return Console(stderr=stderr, soft_wrap=soft_wrap, width=WIDTH, markup=False, emoji=False)


out: Final = console()


def fail(message: str) -> NoReturn:
    """Print why on standard error, unbroken as a log keeps it, and leave with exit code 1."""
    console(stderr=True, soft_wrap=True).print(message, style="red", highlight=False)
    raise typer.Exit(1)
