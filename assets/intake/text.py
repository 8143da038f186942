"""Bytes to text: which encoding a delivered file is in, decided strictly and said aloud."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Final

ENCODINGS: Final = ("utf-8-sig", "cp1252", "iso-8859-15")
"""Tried in this order; ISO-8859-15 reads every byte, so it stands last."""
CHUNK: Final = 1 << 20


def decodes(path: Path, encoding: str) -> bool:
    """Whether every byte of the file is valid in `encoding`, streamed; a NUL byte never is."""
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                if b"\0" in chunk:
                    return False
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def detect_encoding(path: Path, allowed: tuple[str, ...] = ENCODINGS) -> str | None:
    """The first of `allowed` in which the whole file decodes, or None (binary or another encoding)."""
    return next((encoding for encoding in allowed if decodes(path, encoding)), None)
