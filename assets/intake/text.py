"""Which encoding a delivered file is in, decided strictly and reported."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Final

ENCODINGS: Final = ("utf-8-sig", "cp1252", "iso-8859-15")
"""Tried in this order; ISO-8859-15 reads every byte, so it stands last."""
CHUNK: Final = 1 << 20
_LINE_END: Final = re.compile(rb"[\r\n]")


def decodes(path: Path, encoding: str, nul_below: bool = False) -> bool:
    """Whether every byte of the file is valid in `encoding`, streamed.

    A NUL byte never is: no text has one, but UTF-16 in every line. With `nul_below`, only one in the first line counts.
    """
    decoder, looking = codecs.getincrementaldecoder(encoding)("strict"), True
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                if looking and b"\0" in (_LINE_END.split(chunk, 1)[0] if nul_below else chunk):
                    return False
                looking = looking and not (nul_below and _LINE_END.search(chunk))
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def detect_encoding(path: Path, allowed: tuple[str, ...] = ENCODINGS, nul_below: bool = False) -> str | None:
    """The first of `allowed` in which the whole file decodes, or None (binary or another encoding)."""
    return next((encoding for encoding in allowed if decodes(path, encoding, nul_below)), None)
