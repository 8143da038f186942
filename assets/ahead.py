"""Packages that take seconds to import, imported beside the stages before the one that needs them.

Reading, consent and identity leave Python idle for most of their time: DuckDB, Arrow and the disk work. Not here: what
the packages are for (`quality.suite`, `privacy.mechanism`).
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from threading import Thread

from assets.quality import suite


def _prepare() -> None:
    # The stage that needs a package imports it as well, and says what is wrong with it.
    with suppress(Exception):
        suite.prepare()
    with suppress(Exception):
        import diffprivlib.mechanisms  # noqa: F401


@cache
def begin() -> Thread:
    """Begin, once in a process. A stage that is there sooner waits: Python gives no package to two threads half made.

    The thread is no daemon: a process that ends meanwhile waits too, instead of tearing down what is being imported.
    """
    thread = Thread(target=_prepare, name="imports")
    thread.start()
    return thread
