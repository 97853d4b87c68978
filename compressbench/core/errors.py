"""The errors that end a run deliberately; the command line maps the two bases to exit codes."""


class UserError(Exception):
    """A mistake of the user.

    The message is one line: what is wrong and where, the value, and what would be valid.
    """


class LimitError(UserError):
    """A limit that cannot be met: `excess` is the share by which the least possible value exceeds
    it.
    """

    def __init__(self, message: str, excess: float) -> None:
        super().__init__(message)
        self.excess = excess


class CheckFailedError(Exception):
    """An internal check failed; nothing of the current stage is kept."""


class TransientError(CheckFailedError):
    """A check that failed for another reason than the settings, such as a file that changed: the
    same settings may work later.
    """
