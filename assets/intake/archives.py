"""Packed deliveries: the members of an archive become plain files under their own names.

Landing holds plain files only, so that readers, the search for a patient and erasure know no archive. FHIR in a `.gz` of its own
is none: its reader unpacks it. What an archive says of itself is not believed: names, kinds and bytes are judged as they
come, and nothing is written outside of the folder. Not here: when a delivery is complete or known (`connector`).
"""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from assets.intake.connectors.transfer import (
    CHUNK,
    MANIFEST,
    MAX_BYTES,
    MAX_FILES,
    SAFE_NAME,
    UNSAFE_NAME,
    FetchProblem,
    Later,
    is_delivered,
)

MAX_RATIO: Final = 200
"""FHIR text shrinks to a thirtieth; a thousandth is a bomb."""
RATIO_FREE_BYTES: Final = 64 * 2**20
"""Below this, unpacking is harmless whatever the ratio."""
_TAR: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")
_SINGLE: Final = (".bz2", ".csv.gz")
"""One file that no reader unpacks; it is called as the archive, without the last ending."""
_LISTING_BYTES: Final = 16 * 2**20
"""Of the list of members of a ZIP, which `zipfile` holds in memory as a whole: enough for `MAX_FILES` names."""
_HEADER_BYTES: Final = 8 * 2**10
"""Of what precedes a member in a tar, which `tarfile` holds as a whole and, before Python 3.11.10, searches in quadratic time."""
_TAPE_BLOCK: Final = _HEADER_BYTES // 2
_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
"""Bits of a ZIP member's flags: encrypted, strongly so, with its header (APPNOTE 4.4.4)."""
_OF_CONTENT: Final = (None, errno.EINVAL, errno.EOVERFLOW)
"""Codes of an `OSError` that bytes of an archive cause, not a disk: damaged `bz2` and gzip have none, a wild offset is invalid."""


class _Content(Protocol):
    def read(self, size: int, /) -> bytes: ...


_Member = tuple[str, _Content | None]
"""Path in the archive, and what is read of it: None where it is no plain file."""


def allowed_bytes(path: Path) -> int:
    """How many bytes a file may unpack to."""
    return max(path.stat().st_size * MAX_RATIO, RATIO_FREE_BYTES)


def is_packed(name: str) -> bool:
    """Whether a file of that name is unpacked before it is read."""
    return name.lower().endswith((".zip", *_TAR, *_SINGLE))


def collect(files: Sequence[Path], folder: Path) -> list[dict[str, Any]]:
    """Copy what is plain of `files` into the empty `folder`, and unpack the rest there: what the manifest says of each archive.

    Raises `FetchProblem` where that cannot be; `folder` may then hold a part.
    """
    left, number = MAX_BYTES, sum(not is_packed(f.name) for f in files)
    for source in (f for f in files if not is_packed(f.name)):
        shutil.copyfile(source, folder / source.name)
        left -= (folder / source.name).stat().st_size
    about = []
    for source in (f for f in files if is_packed(f.name)):
        room = min(
            _Room("an archive unpacks to far more data than an export can hold; send it unpacked, or in parts", allowed_bytes(source)),
            _Room(f"it unpacks to more than {MAX_BYTES // 2**30} GiB; deliver it in parts", left),
            _Room("it unpacks to more than half of the free room on the disk; make room there, then try again",
                  shutil.disk_usage(folder).free // 2, lasts=False),
            key=lambda r: r.left,
        )  # fmt: skip
        before = room.left
        about.append(_unpack(source, folder, room))
        left -= before - room.left
        number += len(about[-1]["members"])
        _limit(number)
    _make_room(folder / MANIFEST)
    if not any(folder.iterdir()):
        raise FetchProblem("it is empty; deliver at least one file, or no folder at all")
    return about


def _make_room(place: Path) -> None:
    """Remove a server's own list of files, under the name that ours has; raise `FetchProblem` where it is data."""
    with suppress(FileNotFoundError):
        with place.open("rb") as file:
            if b'"resourceType"' in file.read(1 << 16):
                raise FetchProblem(f"a file of it is called {MANIFEST}, as our list of files is; give it another name")
        place.unlink()


@dataclass
class _Room:
    """How many bytes may still come, and what is said where there are more."""

    reason: str
    left: int
    lasts: bool = True

    def take(self, number: int) -> None:
        self.left -= number
        if self.left < 0:
            raise FetchProblem(self.reason, self.lasts)


class _Archive(io.FileIO):
    """A file that nobody reads into memory as a whole."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LISTING_BYTES:
            raise _too_many()
        return super().read(size) or b""


@dataclass
class _Tape:
    """A tar as `tarfile` reads it, block by block; `header` is its limit while what precedes a member is read."""

    content: _Content
    room: _Room
    header: _Room | None = None

    def read(self, size: int) -> bytes:
        block = self.content.read(size)
        for limit in (self.room, self.header):
            if limit:
                limit.take(len(block))
        return block


class _Entry(tarfile.TarInfo):
    """A member of a tar. A damaged header ends the archive for `tarfile`, and what follows would be lost unnoticed."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Entry:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # the block of zeros at the end
            raise
        except tarfile.HeaderError:
            raise EOFError from None


def _unpack(archive: Path, folder: Path, room: _Room) -> dict[str, Any]:
    """Write the members of `archive` into `folder`; name, bytes and sha256 of the archive, and the members' names."""
    members, name = [], archive.name.lower()
    with _Archive(archive) as file, _value_free():
        before = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        if name.endswith(".zip"):
            found = _of_zip(file)
        elif name.endswith(_TAR):
            found = _of_tar(file, replace(room))
        elif content := _decompressed(file):
            found = iter([(archive.name.rpartition(".")[0], content)])
        else:  # nothing at all may be what is left of a list of consents
            raise EOFError
        for path, content in found:
            if (member := _file_name(path)) is None:
                continue
            if content is None:
                raise FetchProblem("an archive holds a link or a device; pack plain files")
            _write(content, folder / member, room)
            members.append(member)
        after = os.fstat(file.fileno())
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise Later("it changed while it was taken; the next run takes it")
    return {"name": archive.name, "bytes": before.st_size, "sha256": digest, "members": members}


@contextmanager
def _value_free() -> Iterator[None]:
    """Whatever the content of an archive makes a library raise becomes a reason: its message may quote a member's name."""
    try:
        yield
    except (FetchProblem, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in _OF_CONTENT:
            raise
        raise FetchProblem("an archive is damaged, cut off or in several parts; pack and send it again") from None


def _file_name(path: str) -> str | None:
    """The name of the file that a member becomes, None where it is what a system leaves beside files."""
    *folders, name = path.replace("\\", "/").split("/")
    if ".." in folders or folders[:1] == [""] or path[1:2] == ":":
        raise FetchProblem("an archive holds paths that lead out of it; pack the folder again, with relative paths")
    if "__MACOSX" in folders or not is_delivered(name):
        return None
    if not SAFE_NAME.match(name):
        raise FetchProblem(f"in an archive, {UNSAFE_NAME}")
    if is_packed(name):
        raise FetchProblem("an archive lies within an archive; pack the files themselves")
    return name


def _write(content: _Content, target: Path, room: _Room) -> None:
    try:
        out = target.open("xb")
    except FileExistsError:
        raise FetchProblem("two files have the same name, in an archive or beside it; give each its own") from None
    with out:
        while block := content.read(CHUNK):
            room.take(len(block))
            out.write(block)


def _decompressed(file: _Archive) -> _Content | None:
    """What lies behind gzip or bzip2, told by the first bytes, for an ending is easily wrong; None where neither is."""
    start = file.read(3)
    file.seek(0)
    if start == b"BZh":
        return bz2.BZ2File(file)
    return gzip.GzipFile(fileobj=file) if start[:2] == b"\x1f\x8b" else None


def _of_zip(file: _Archive) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as archive:
        listed = archive.infolist()
        _limit(len(listed))
        end = 0
        for member in sorted(listed, key=lambda m: m.header_offset):
            if member.header_offset < end:  # known to `zipfile` only from Python 3.11.8 on
                raise zipfile.BadZipFile
            end = member.header_offset + member.compress_size
        for member in listed:
            path = member.filename
            if path.endswith(("/", "\\")):
                continue
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                yield path, None
            elif member.flag_bits & _ENCRYPTED:
                raise FetchProblem("an archive is encrypted; pack it without a password")
            elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # Others unpack a block at once, whatever comes out of it.
                raise FetchProblem("an archive is packed in a way that is not read; pack it as ordinary ZIP (Deflate)")
            else:
                with archive.open(member) as content:
                    yield path, content


def _of_tar(file: _Archive, room: _Room) -> Iterator[_Member]:
    tape: Any = _Tape(_decompressed(file) or file, room)
    number = 0

    def begin() -> None:
        tape.header = _Room(
            "an archive holds more about its files than any of ours; pack plain files as tar or ZIP", _HEADER_BYTES
        )

    begin()
    with tarfile.open(fileobj=tape, mode="r|", bufsize=_TAPE_BLOCK, tarinfo=_Entry, encoding="utf-8") as archive:
        while member := archive.next():
            number, tape.header = number + 1, None
            _limit(number)
            if not member.isdir():
                content = archive.extractfile(member) if member.isreg() else None
                yield member.name, content
                # Litter is passed over as content, for as a header it would be too long.
                while content and (rest := content.read(CHUNK)):
                    room.take(len(rest))
            archive.members = []  # type: ignore[attr-defined] # held for nobody, with all that their headers said
            archive.pax_headers = {}
            begin()
        tape.header = None
        while rest := tape.read(CHUNK):  # to the end, where gzip has its checksum
            if rest.strip(b"\0"):
                raise FetchProblem("something follows the end of an archive; pack everything into one")


def _limit(number: int) -> None:
    if number > MAX_FILES:
        raise _too_many()


def _too_many() -> FetchProblem:
    return FetchProblem(f"an archive lists more than {MAX_FILES} files; deliver larger files, or in parts")
