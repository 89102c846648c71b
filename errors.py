"""Errors meant for the user's eyes, importable from every folder.

The message is one sentence: what was found, where, and what to do. The command line prints it
without a traceback and exits with the class's `exit_code` (table in docs/debugging.md).
"""


class SmeltError(Exception):
    """Base of every error that smelt raises on purpose."""

    exit_code = 1


class UsageError(SmeltError):
    """An argument, option or environment variable has a value that is not understood."""

    exit_code = 2


class ModelError(SmeltError):
    """The model is malformed, or uses something that is not supported."""

    exit_code = 3


class TargetError(SmeltError):
    """The target is unknown, or a compiler or tool that it needs is missing or failed."""

    exit_code = 4


class ArtifactError(SmeltError):
    """A compiled model is damaged, of another version, or made for another machine."""

    exit_code = 5


class InputError(SmeltError):
    """An input given at run time does not match the model's signature."""

    exit_code = 6


class OutputError(SmeltError):
    """A result cannot be written."""

    exit_code = 7


class VerifyError(SmeltError):
    """The compiled model's outputs differ from the reference beyond the tolerance."""

    exit_code = 8
