"""The command line's entry: runs a command, and turns every error into one sentence and the exit
code of its class: docs/debugging.md.

The commands are imported when they run, inside `main`: Ctrl-C in the imports, which take most of a
short command's time, ends like one at any later time.
"""

from __future__ import annotations

import sys

from .errors import SmeltError, UsageError

UNEXPECTED, INTERRUPTED = 70, 130


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line and returns its exit code; prints one sentence on failure."""
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        options = arguments[:arguments.index("--")] if "--" in arguments else arguments
        json, debug = "--json" in options, "--debug" in options
        try:
            return _run(arguments or ["--help"])
        except BaseException as error:
            return _fail(error, json, debug)
    except KeyboardInterrupt:  # once more, while an error was being explained
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    from typer.main import get_command

    from .cli_commands import app
    from .screen import silence

    try:
        # In this mode Typer returns the code of an Exit and lets all other exceptions through.
        code = get_command(app).main(arguments, "smelt", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        # The reader of the help, which Typer prints, is gone. Typer exits with 1 then.
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__,
                                                                     BrokenPipeError):
            raise
        silence(sys.stdout)
        return 0
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _fail(error: BaseException, json: bool, debug: bool) -> int:
    from .screen import Screen, printable, write

    code, message = _explain(error)
    if debug:
        import traceback

        write("".join(traceback.format_exception(error)), sys.stderr)
    screen = Screen(json)
    details = getattr(error, "details", {})
    screen.result({**details, "error": {"class": type(error).__name__, "message": message,
                                        "exit_code": code}})
    screen.note(f"smelt: {printable(message, 2000)}")
    return code


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and sentence of an error."""
    if isinstance(error, SmeltError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":  # Typer's
        return INTERRUPTED, "interrupted; no incomplete output was left"
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1, "stopped"
    if hasattr(error, "format_message"):  # of Typer's own click, or of click
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "smelt"
        text = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        return UsageError.exit_code, f"{text}: see {path} --help"
    if isinstance(error, MemoryError):
        return SmeltError.exit_code, "there is not enough memory for this model"
    if isinstance(error, OSError):
        where = f" {error.filename!r}" if error.filename else ""
        return SmeltError.exit_code, f"the system refused{where}: {error.strerror or error}"
    text = " ".join(str(error).split())[:200]
    return UNEXPECTED, (f"unexpected {type(error).__name__} ({text}): this is a bug in smelt, "
                        f"please report it with what --debug prints")
