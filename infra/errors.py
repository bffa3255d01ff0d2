"""What a user's mistake looks like: a message and an exit code, never a traceback."""


class UserError(Exception):
    """Something the user can mend; the message says what came, what is allowed and what to do.

    Exit codes: 0 done, 1 failed, 2 usage, 3 finished with failures above the budget.
    """

    exit_code = 1


class UsageError(UserError):
    """A command line or configuration that cannot be carried out; nothing was written."""

    exit_code = 2


class BudgetExceeded(UserError):  # noqa: N818  (an outcome, not a fault: the work itself is done)
    """The work is finished, with more failures than the caller allowed."""

    exit_code = 3
