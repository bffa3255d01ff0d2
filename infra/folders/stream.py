"""Bytes that come in pieces, as a file."""

import io
from collections.abc import Generator
from typing import Any


class Stream(io.RawIOBase):
    """A file that is read once, from its start to its end; wrap it in a `BufferedReader`.

    Args:
        pieces: the bytes in order; closed with the file.
    """

    def __init__(self, pieces: Generator[bytearray, None, None]) -> None:
        super().__init__()
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from one piece; returns the number of bytes, 0 at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        view = memoryview(buffer).cast("B")
        count = min(view.nbytes, self._rest.nbytes)
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        """End the reading ahead."""
        self._pieces.close()
        super().close()
