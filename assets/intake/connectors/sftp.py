"""SFTP: exports below a folder of a server whose host key is known beforehand. Only reading."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Collection, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from assets.contract.connectors import SftpConnector
from assets.intake.connectors.transfer import (
    CHUNK,
    MAX_FILES,
    FetchProblem,
    RemoteFile,
    Transient,
    fetch_folders,
    secret_value,
)

T = TypeVar("T")


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Errors of the library and the network as value-free problems: which pass by themselves, which do not."""
    import asyncssh

    try:
        yield
    except FetchProblem:
        raise
    except asyncssh.HostKeyNotVerifiable:
        raise FetchProblem("the server's host key is not the one in known_hosts; ask the clinic, do not skip") from None
    except asyncssh.PermissionDenied:
        raise FetchProblem("the server refused the log-in; check user, key or password") from None
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError):
        raise FetchProblem("private_key or passphrase cannot be used") from None
    except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPPermissionDenied, asyncssh.SFTPNoSuchPath):
        raise FetchProblem("the server's folder is missing or closed to us; check path and rights") from None
    except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection, asyncssh.DisconnectError):
        raise Transient("the connection to the server was lost") from None
    except asyncssh.Error:
        raise Transient("the server reported an error") from None
    except (OSError, TimeoutError):
        raise Transient("the server cannot be reached or did not answer in time") from None


class SftpStore:
    """A session that is opened when it is needed and after every loss. Use as a context manager."""

    def __init__(self, settings: SftpConnector) -> None:
        self._settings = settings
        # A thread of its own: whoever asks may run an event loop already, and one thread runs one loop.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._runner = asyncio.Runner()
        self._connection: Any = None
        self._client: Any = None

    def __enter__(self) -> SftpStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()

    def _drop(self) -> None:
        connection, self._connection, self._client = self._connection, None, None
        if connection is not None:
            connection.abort()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        async def in_time() -> T:
            return await asyncio.wait_for(work, self._settings.timeout_seconds)

        try:
            with _in_our_words():
                return self._thread.submit(self._runner.run, in_time()).result()
        except FetchProblem:
            self._drop()
            raise

    async def _connect(self) -> Any:
        import asyncssh

        if self._client is None:
            s = self._settings
            known_hosts = Path(s.known_hosts)
            if not known_hosts.is_file():
                raise FetchProblem("the known_hosts file is missing; put the server's host key there")
            passphrase = secret_value(s.passphrase) if s.passphrase else None
            try:
                keys = [asyncssh.read_private_key(str(s.private_key), passphrase)] if s.private_key else None
            except OSError:
                raise FetchProblem("the private_key file cannot be read; check its path and rights") from None
            self._connection = await asyncssh.connect(
                s.host,
                s.port,
                username=s.user,
                known_hosts=str(known_hosts),
                password=secret_value(s.password) if s.password else None,
                client_keys=keys,
                agent_path=None,
                config=None,
                connect_timeout=s.timeout_seconds,
                login_timeout=s.timeout_seconds,
            )
            self._client = await self._connection.start_sftp_client()
        return self._client

    def _path(self, *parts: str) -> str:
        return "/".join((self._settings.path.rstrip("/") or "/", *parts))

    def folders(self) -> list[str]:
        """Names of the folders below `path`, hidden ones left out."""

        async def list_them() -> list[str]:
            client = await self._connect()
            names = []
            async for entry in client.scandir(self._path()):
                if stat.S_ISDIR(entry.attrs.permissions or 0) and not str(entry.filename).startswith("."):
                    names.append(str(entry.filename))
                if len(names) > MAX_FILES:
                    raise FetchProblem(f"the server's folder holds more than {MAX_FILES} exports; remove old ones")
            return names

        return self._run(list_them())

    def files(self, folder: str) -> list[RemoteFile]:
        """Files of an export; anything but a plain file is refused."""

        async def list_them() -> list[RemoteFile]:
            client = await self._connect()
            found: list[RemoteFile] = []
            async for entry in client.scandir(self._path(folder)):
                name, attrs = str(entry.filename), entry.attrs
                if name in (".", ".."):
                    continue
                if not stat.S_ISREG(attrs.permissions or 0):
                    raise FetchProblem("it holds something other than plain files; deliver plain files only")
                found.append(RemoteFile(name, int(attrs.size or 0), str(attrs.mtime)))
                if len(found) > MAX_FILES + 1:
                    raise FetchProblem(f"it is larger than {MAX_FILES} files; deliver larger ones")
            return found

        return self._run(list_them())

    def chunks(self, folder: str, file: RemoteFile, offset: int) -> Iterator[bytes]:
        """The bytes of a file from `offset` on, CHUNK at a time."""

        async def open_it() -> Any:
            client = await self._connect()
            return await client.open(self._path(folder, file.name), "rb")

        async def read(handle: Any, start: int) -> bytes:
            return bytes(await handle.read(min(CHUNK, file.size - start), start))

        handle = self._run(open_it())
        while offset < file.size:
            chunk = self._run(read(handle, offset))
            if not chunk:
                break
            yield chunk
            offset += len(chunk)
        self._run(handle.close())


def fetch(
    settings: SftpConnector, inbox: Path, days: Collection[date], today: date
) -> list[tuple[date | None, str, FetchProblem]]:
    """Fetch new exports of `days`; returns what could not be, and why. Raises `FetchProblem` for the server."""
    with SftpStore(settings) as store:
        return fetch_folders(store, settings, inbox, days, today)
