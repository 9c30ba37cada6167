"""Files on the disk of this machine."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from bncheck.errors import DAMAGED_HINT, UnreadableError, UsageError
from bncheck.wording import quoted

if TYPE_CHECKING:
    from types import TracebackType


class FileSource:
    """A local file, opened for reading only.

    Positional reads rather than a memory map: a map counts every page that the kernel reads ahead
    towards the memory of the process, and ends it with SIGBUS when the file shrinks while it is read.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = str(path) if name is None else name
        self.bytes_read = 0
        self._siblings: dict[str, FileSource] = {}
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
                raise UsageError(f"{self.name} is not a regular file", "Give the path of a checkpoint file.")
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise UsageError(
                f"{self.name} does not exist", "Check the path; relative paths start at the current directory."
            ) from None
        except PermissionError:
            raise UsageError(f"{self.name} may not be read by this user", "Check the file's permissions.") from None
        except OSError as error:
            raise UsageError(
                f"{self.name} cannot be opened: {error.strerror}", "Check the path and the file system."
            ) from None
        except ValueError as error:  # a NUL byte in the path
            raise UsageError(f"{self.name!r} is not a path: {error}", "Check the path.") from None
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; UnreadableError where the file does not hold them."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise UnreadableError(
                f"{self.name} ends at byte {self.size}, but bytes up to {offset + length} are needed",
                DAMAGED_HINT,
            )
        try:
            self._file.seek(offset)
            data = self._file.read(length)
            while len(data) < length:  # the system may give less than it is asked for
                more = self._file.read(length - len(data))
                if not more:
                    raise UnreadableError(f"{self.name} shrank while it was read", "Run again when it is complete.")
                data += more
        except OSError as error:
            raise UnreadableError(
                f"{self.name} cannot be read: {error.strerror}", "Check the disk or the network file system."
            ) from None
        self.bytes_read += length
        return data

    def sibling(self, name: str) -> FileSource:
        """The file `name` beside this one; names that lead out of its folder are refused."""
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or "\\" in name or not name:
            raise UnreadableError(
                f"{self.name} refers to {quoted(name)}, which is outside its folder",
                "Do not trust this file; a sharded checkpoint refers to files beside its index.",
            )
        key = str(relative)  # without "./" and "//"
        if key not in self._siblings:
            shown = str(Path(self.name).parent / relative)
            self._siblings[key] = FileSource(self.path.parent / relative, shown)
        return self._siblings[key]

    def close(self) -> None:
        """Closes the file and those beside it."""
        self._file.close()
        for sibling in self._siblings.values():
            sibling.close()

    def __enter__(self) -> FileSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
