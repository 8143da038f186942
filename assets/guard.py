"""How a stage fails: what happened, where, and what to do; never a value that an exception may carry.

Lives beside the assets because it raises Dagster's `Failure`; it is the only such helper.
"""

from __future__ import annotations

import errno
import sqlite3
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import dagster as dg

RUNBOOK: Final = "docs/runbook.md"
REMEDIES: Final[dict[str, str]] = {
    "CityFileError": "Correct the city file as the message says, then run the same days again.",
    "KeyFileError": "Where the message names a rotation, finish it with `digitalstadt keys rotate`; else put the key file back from "
    "its backup with mode 600. Never create a new one over old data.",
    "NotStaged": "Run the whole job `daily_run` for these days: the stages hand their tables over within one run.",
    "RawFilesErased": "Leave the days that are named out of the range; late data is delivered under a newer day.",
    "QualityDisagreement": "Two engines count differently: nothing went on. Report it with the rules that are named.",
    "SuiteFailed": "The quality suite gave no result for a rule: nothing went on. Report it with the rules that are named.",
    "CertificateMismatch": "Run the days that are named again, from intake on; then these.",
    "PlanRefused": "Change the release plan in the city file as the message says; `digitalstadt plan` shows the price.",
    "PlanChanged": "Put tables, shares, dimensions and caps back as they were; a plan changes with a new window only.",
    "CapChanged": "Put epsilon, delta, epoch, mechanism and caps back as they were; they change with a new window only.",
    "BudgetExceeded": "What is set aside for corrections is spent: leave the published value as it is until the next window.",
    "LossAboveBudget": "Nothing was released. Do not run again; report it: bounding and plan do not fit.",
    "SnapshotMismatch": "Data behind a measurement that is reserved already has changed. Follow the runbook's steps.",
    "Overtaken": "Another run was faster. Nothing is lost: run the same days again.",
    "LedgerBroken": "Stop the schedule. Keep the ledger file, restore the newest backup that verifies.",
    "LedgerBehind": "An older ledger lies there. Stop the schedule and restore the newest backup; the runbook says how.",
    "WitnessError": "Make the witness file readable and writable, or put back its newest copy. Never an empty one.",
    "ZoneError": "Use the software version and the keys that the message names; they belong to this data root.",
    "DamagedTable": "Put that file back from a copy of the data root, or follow the runbook where there is none. Delete nothing.",
    "DataRootBusy": "Another process works on the data root. Wait until it is done, then run the same days again.",
    "LeaseLost": "The ledger's database was out of reach during the run. Fix it, then run the same days again.",
    "DatabaseLost": "The ledger's database does not answer. Fix it or the network, then run the same days again.",
    "EngineMissing": "Install what the message names, or set `engine: duckdb`; then run the same days again.",
    "ShardFailed": "Give Spark's workers more memory or run fewer days; the same days with `engine: duckdb` give the same.",
    "DiskFull": "Make room on the disk of the data root, then run the same days again.",
    "NotWritable": "Give the service's user write access to the data root, then run the same days again.",
    "MemoryError": "Run fewer days at once, or give the machine more memory.",
    "Unforeseen": "Run the same days once more. If it fails again, report stage, class and place, nothing else.",
}
"""What to do about a failed stage, by kind of failure; each has its entry in the runbook under the same name."""
QUOTED: Final = frozenset(REMEDIES) - {"DatabaseLost", "DiskFull", "NotWritable", "MemoryError", "Unforeseen"}
"""Exceptions of ours whose message is written to be value-free."""
_ERRNO: Final = {
    errno.ENOSPC: "DiskFull", errno.EDQUOT: "DiskFull", errno.EFBIG: "DiskFull",
    errno.EROFS: "NotWritable", errno.EACCES: "NotWritable", errno.EPERM: "NotWritable",
}  # fmt: skip

_SQLITE: Final = {
    sqlite3.SQLITE_FULL: "DiskFull", sqlite3.SQLITE_READONLY: "NotWritable", sqlite3.SQLITE_CANTOPEN: "NotWritable",
    sqlite3.SQLITE_IOERR: "DiskFull", sqlite3.SQLITE_BUSY: "DataRootBusy",
}  # fmt: skip


def kind_of(error: BaseException) -> str:
    """The kind of failure, a key of `REMEDIES`."""
    name = type(error).__name__
    if name in REMEDIES:
        return name
    # By name: psycopg is an extra. A server that is shut down raises one of the class's many children.
    if any(c.__name__ == "OperationalError" and c.__module__.startswith("psycopg") for c in type(error).__mro__):
        return "DatabaseLost"
    # Arrow's and NumPy's are children of Python's own; DuckDB's is none.
    if isinstance(error, MemoryError) or name == "OutOfMemoryException":
        return "MemoryError"
    # SQLAlchemy, through which Dagster's own storage is reached, wraps what the database said.
    if isinstance(cause := getattr(error, "orig", None), Exception):
        return kind_of(cause)
    if isinstance(error, sqlite3.OperationalError):
        return _SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "Unforeseen")
    return _ERRNO.get(getattr(error, "errno", None) or 0, "Unforeseen")


def anchor(heading: str) -> str:
    """Address of a heading of the runbook, as Markdown renderers make it."""
    return f"{RUNBOOK}#{heading.lower().replace(' ', '-')}"


class Told(NamedTuple):
    """One failure in words that hold no value."""

    happened: str
    remedy: str
    runbook: str
    place: str


def told(error: Exception) -> Told:
    """What is said of `error`: its own message only where that is written to be value-free."""
    kind, name = kind_of(error), type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    place = " > ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[-4:])
    reason = str(error) if name in QUOTED else "its message is withheld, it might hold a value"
    code = errno.errorcode.get(getattr(error, "errno", None) or 0, "")
    return Told(f"{f'{name} {code}'.strip()}: {reason}", REMEDIES[kind], anchor(kind), place)


@contextmanager
def value_free(stage: str) -> Iterator[None]:
    """Turn any exception into a `Failure` that says what happened, where and what to do, but no value."""
    try:
        yield
    except dg.Failure:
        raise
    except Exception as error:
        about = told(error)
        raise dg.Failure(
            f"{stage} stopped: {about.happened}. What to do: {about.remedy} ({about.runbook})",
            metadata={
                "what happened": about.happened,
                "what to do": about.remedy,
                "runbook": about.runbook,
                "place": about.place,
            },
            allow_retries=False,
        ) from None
