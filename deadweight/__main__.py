"""The entry point: one place where errors become a message and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback


def main() -> None:
    """Runs the command line. Exit codes: those of each command; 2 for bad input, 130 for Ctrl-C,
    143 and 129 for SIGTERM and SIGHUP."""
    # Before torch is loaded: on a busy machine, threads that wait by spinning starve each other (an epoch
    # took 34 s instead of 3); a short spin and then sleep costs nothing on an idle one.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        import fcntl  # noqa: F401
        import resource  # noqa: F401
    except ModuleNotFoundError as error:
        print(
            f"deadweight needs Linux or macOS, and this system's Python has no {error.name}: it counts "
            "disturbances of a timing, and locks files that two runs could write.\n"
            "On Windows, install and run it in WSL (wsl --install); --on reaches boards from there.",
            file=sys.stderr,
        )
        sys.exit(2)
    try:
        import typer  # noqa: F401
    except ModuleNotFoundError:
        print(
            "The command line needs typer and rich.\nInstall the extra [ci] (to time and compare models) or "
            '[workstation] (all of it), in a checkout: pip install ".[ci]".',
            file=sys.stderr,
        )
        sys.exit(2)
    _leave_nothing()
    from .cli import app
    from .targets.errors import DeadweightError
    from .terminal.printer import err
    from .terminal.tables import explain

    try:
        app(prog_name="deadweight")
    except DeadweightError as error:
        explain(error.what, error.cure)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("deadweight"):
            raise
        cure = 'Install the extra [workstation], in a checkout: pip install ".[workstation]".'
        explain(f"This command needs {error.name}.", cure)
        sys.exit(2)
    except OSError as error:
        cure = "Check the path and its permissions."
        explain(f"{error.filename or 'A file'} cannot be used: {error.strerror or error}.", cure)
        sys.exit(2)
    except Exception:
        # A bug in deadweight. Python would exit with 1, which a CI job would read as a slower model.
        err.say(traceback.format_exc())
        sys.exit(2)


def _leave_nothing() -> None:
    """Ends as after Ctrl-C on the system's request: child processes and temporary files go too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, lambda got, _: sys.exit(128 + got))


if __name__ == "__main__":
    main()
