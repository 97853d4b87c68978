"""The two errors that end a run deliberately; the command line maps them to exit codes."""


class UserError(Exception):
    """A mistake of the user.

    The message is one line: what is wrong and where, the value, and what would be valid.
    """


class CheckFailedError(Exception):
    """An internal check failed; nothing of the current stage is kept."""
