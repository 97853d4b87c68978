"""The two ways a run may end on purpose; the command line turns them into exit codes."""


class UserError(Exception):
    """The user's mistake: one line that says what, where, the value and what would be right."""


class CheckFailedError(Exception):
    """A check or invariant of ours refused to go on: nothing of this stage is kept."""
