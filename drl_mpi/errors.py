"""The error that is the user's to mend, and the exit codes that scripts rely on."""

from __future__ import annotations

EXIT_OK = 0
"""Finished: the run folder holds DONE."""

EXIT_USAGE = 2
"""Bad usage or input: one line on stderr says what to change."""

EXIT_STOPPED = 75
"""Stopped early with a verified checkpoint: requeue the job (EX_TEMPFAIL of sysexits.h)."""


class UsageError(Exception):
    """Bad usage or bad input, found before any work starts.

    The message is one line: what is wrong, the value, what is allowed, what to do. A job prints it
    on stderr without a traceback and exits with `EXIT_USAGE`.
    """
