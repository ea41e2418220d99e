"""Errors that a user can act on.

Every message is one line: it names the offending value, what is wrong with it and what would be
right. The command line prints the message and exits with code 2.
"""

from __future__ import annotations


class BioTuneError(Exception):
    """Base of all errors that are the user's to mend."""


class DataError(BioTuneError):
    """Images, labels or splits cannot be used as given."""


class ModelError(BioTuneError):
    """A model or its weights cannot be used as given."""


class StorageError(BioTuneError):
    """A study's database cannot be opened, read or written."""


class StudyError(BioTuneError):
    """A study cannot be created, resumed or continued as asked."""
