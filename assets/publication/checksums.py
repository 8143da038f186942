"""`checksums.sha256` of a release: written last, and compared with the files whenever the state is asked for.

Against accidental damage only: whoever can write the files can write their checksums too. Readers
compare with `sha256sum -c checksums.sha256`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from assets.lake.files import sha256_of

FILE: Final = "checksums.sha256"


def checksums(files: Mapping[str, bytes]) -> bytes:
    """The file's content, one line a file, by name."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())).encode()


def altered(open_data: Path) -> Iterator[str]:
    """Files of the newest version of each dataset that are missing or are not what was published: dataset, version, file."""
    for latest in sorted(dataset / "latest" for dataset in open_data.glob("*") if (dataset / "latest").is_symlink()):
        folder = latest.resolve()  # of a version that is gone as well: a pattern would pass over the link to it
        try:
            lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            yield f"{latest.parent.name} {folder.name}: {FILE} cannot be read"
            continue
        for digest, _, name in (line.partition("  ") for line in lines):
            path = folder / Path(name).name
            if not path.is_file() or sha256_of(path) != digest:
                yield f"{latest.parent.name} {folder.name}: {path.name} is not what was published"
