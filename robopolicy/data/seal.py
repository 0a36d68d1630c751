"""A file's SHA-256 kept inside the file itself, so that one atomic rename writes both and any changed byte shows.

The file holds the text BLANK somewhere its format allows free text (a JSON value, parquet metadata, a zip comment).
`seal` replaces the zeros by the digest of the whole file with the zeros in place.
"""

from __future__ import annotations

import hashlib

MARK = "robopolicy-sha256:"
_ZEROS = b"0" * 64
BLANK = MARK + _ZEROS.decode()


def seal(data: bytes) -> bytes:
    """`data`, whose last mark is BLANK, with the digest in place of the zeros."""
    start, found = _digest_at(data)
    if found != _ZEROS:
        raise ValueError(f"there is no {BLANK!r} to seal")
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[start + len(_ZEROS) :]


def is_intact(data: bytes) -> bool | None:
    """Whether no byte of a sealed file has changed; None for a file that holds no seal."""
    start, found = _digest_at(data)
    if start < 0:
        return None
    blank = b"".join((data[:start], _ZEROS, data[start + len(_ZEROS) :]))
    return len(found) == len(_ZEROS) and found == hashlib.sha256(blank).hexdigest().encode()


def _digest_at(data: bytes) -> tuple[int, bytes]:
    """Where the digest of the last mark begins (-1: no mark), and the digest."""
    mark = data.rfind(MARK.encode())
    start = mark + len(MARK) if mark >= 0 else -1
    return start, data[start : start + len(_ZEROS)] if start >= 0 else b""
