"""From exceptions to exit codes, in one place.

In: a command to run. Out: its exit code, after one clear line on stderr. A traceback is shown only for what
no user caused.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

from xentrs.errors import ManifestMismatch, ParamError, XentrsError

DONE, FAILED, USAGE, QUARANTINED, GATE_FAILED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143


class CommandError(click.ClickException):
    """A command's own refusal, with the exit code it means."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares a default on the class


class _Terminated(BaseException):
    """SIGTERM arrived; derives from BaseException so that no handler of errors swallows it."""


def run_mapped(command: Callable[[], Any]) -> int:
    """Run `command`; its integer result, or the code its exception stands for."""
    try:
        with _sigterm_raises():
            result = command()
            sys.stdout.flush()
        return result if isinstance(result, int) else DONE
    except click.exceptions.Exit as exit_request:
        return int(exit_request.exit_code)
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted; a RUN folder stays: the same command goes on where it stopped", INTERRUPTED)
    except _Terminated:
        return _say("terminated; a RUN folder stays: the same command goes on where it stopped", TERMINATED)
    except (ManifestMismatch, ParamError) as error:
        return _say(error, USAGE)
    except BrokenPipeError:
        # The reader has gone; without this Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (XentrsError, OSError) as error:
        return _say(error, FAILED)
    except MemoryError:
        return _say("out of memory; a smaller --batch-tokens or --window needs less", FAILED)


def _say(message: object, exit_code: int) -> int:
    print(f"Error: {message}" if exit_code in (FAILED, USAGE) else message, file=sys.stderr)
    return exit_code


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated

    try:
        previous = signal.signal(signal.SIGTERM, raise_terminated)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
