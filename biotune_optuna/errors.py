"""Errors that a user can act on.

Every message is one line: it names the offending value, what is wrong with it and what would be
right. The command line prints the message and exits with code 2, or with the error's own.
"""

from __future__ import annotations


class BioTuneError(Exception):
    """Base of all errors that are the user's to mend.

    Attributes:
        exit_code: What the command line ends with.
    """

    exit_code = 2


class DataError(BioTuneError):
    """Images, labels or splits cannot be used as given."""


class ModelError(BioTuneError):
    """A model or its weights cannot be used as given."""


class LostDeviceError(BioTuneError):
    """A GPU failed in a way after which the process cannot use it; a new process may.

    The running trial is handed back, and ``biotune launch`` starts the worker again.

    Args:
        what: The device, and what was said of it.
    """

    exit_code = 3

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}; this process cannot use the device any more: type the same command again to "
            "go on"
        )


class StorageError(BioTuneError):
    """A study's database cannot be opened, read or written."""


class DeletedStudyError(StorageError, KeyError):
    """The study was deleted while somebody worked on it; nothing more of the work is written.

    Args:
        name: The study's name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f"study {name!r} was deleted while it was worked on; nothing more is written: begin a "
            "study again to go on"
        )

    def __str__(self) -> str:
        """Return the message; as a KeyError it would stand in quotes."""
        return str(self.args[0])


class StudyError(BioTuneError):
    """A study cannot be created, resumed or continued as asked."""
