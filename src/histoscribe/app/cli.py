"""The command line: parse, call one function, write.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from histoscribe import __version__
from histoscribe.app import (
    commands_bulk,
    commands_checkpoint,
    commands_machine,
    commands_study,
    commands_survival,
    commands_words,
)
from histoscribe.app.console import Voice
from histoscribe.app.faults import BUG, OUR_WORDS, in_our_words
from histoscribe.app.together import check_alone, claim_fault, find_lost
from histoscribe.errors import HistoscribeError

INTERRUPTED = 130  # 128 + SIGINT, what a shell reports
PIPE_CLOSED = 141  # 128 + SIGPIPE

UsageFault: type[Exception] = typer.BadParameter.__mro__[2]
"""ClickException: of click itself, or of the copy of click that newer versions of typer carry."""

app = typer.Typer(
    name="histoscribe",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"histoscribe {__version__}")
        raise typer.Exit


@app.callback()
def describe(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print version."),
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Keep the traceback of a failure.")
    ] = False,
) -> None:
    """Reads gene expression from routine H&E slides.

    A first look, on real tissue that comes with the program (under three minutes):

        histoscribe demo

    Your own slides, from a manifest (CSV: sample, patient, slide, mpp, expression, spots, tissue,
    nuclei):

        histoscribe doctor slides/*.svs            can they be read, and how long will it take?

        histoscribe match tpm.csv slides/ --out c/ bulk RNA-seq: which slides are whose

        histoscribe ingest manifest.csv study/     check every table against its slide

        histoscribe prepare study/                 nuclei and their features

        histoscribe fit study/ --test C2           train on the others, score on C2, report

        histoscribe predict study/ --run first     expression of every region, or of every cell

        histoscribe annotate study/ --terms t.txt  which of your words fits where, never shown one

        histoscribe search study/ "plasma cells"   where a text fits best, as a map

        histoscribe survival study/ --clinical t   what it says of patients, against follow-up

    Exit codes: 0 done; 2 a wrong request; 3 data that do not hold up; 4 parts that do not
    belong together; 5 something missing on this machine; 6 some samples of a cohort failed, the
    others are done; 70 a bug of ours; 130 interrupted; 141 the reader of the output went away.
    """


GROUPS = (
    commands_study,
    commands_checkpoint,
    commands_words,
    commands_bulk,
    commands_survival,
    commands_machine,
)

for group in GROUPS:
    group.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and turn every way it can end into an exit code.

    Args:
        arguments: The words after the program's name; those of the process by default.

    Returns:
        The exit code. One clear message stands on stderr where it is not 0; of several processes
        (`torchrun`), the one that failed first writes it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_debug = "--debug" in words or bool(os.environ.get("HISTOSCRIBE_DEBUG"))
    words = [word for word in words if word != "--debug"]
    voice = Voice("--json" in words)
    try:
        check_alone(words)
        code = app(args=words, prog_name="histoscribe", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except HistoscribeError as error:
        return _fail(voice, error, is_debug)
    except UsageFault as error:
        return _refuse(voice, error)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupt(voice)
    except BrokenPipeError:
        # the reader has gone: the interpreter's last flush must not complain either
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        return (
            _fail(voice, in_our_words(error), is_debug)
            if error.errno in OUR_WORDS
            else _bug(voice, error, is_debug)
        )
    except Exception as error:  # noqa: BLE001 - the border: a bug must not look like a user's fault
        lost = find_lost(error)
        return _fail(voice, lost, is_debug) if lost else _bug(voice, error, is_debug)


def _interrupt(voice: Voice) -> int:
    if claim_fault():
        voice.say("Interrupted. What was finished is kept; the same command goes on from there.")
    return INTERRUPTED


def _fail(voice: Voice, error: HistoscribeError, is_debug: bool) -> int:
    if is_debug:
        traceback.print_exc()
    if claim_fault():
        voice.fault(type(error).__name__, str(error), error.exit_code)
    return error.exit_code


def _refuse(voice: Voice, error: Exception) -> int:
    """A word on the command line that is not known."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "histoscribe"
    message = getattr(error, "format_message", error.__str__)()
    if claim_fault():
        voice.fault("ConfigError", f"{message.rstrip('.')}. See '{command} --help'.", 2)
    return 2


def _bug(voice: Voice, error: Exception, is_debug: bool) -> int:
    if is_debug:
        traceback.print_exc()
    if not claim_fault():
        return BUG
    with tempfile.NamedTemporaryFile(
        "w", prefix="histoscribe-fault-", suffix=".log", delete=False
    ) as stream:
        traceback.print_exc(file=stream)
        path = Path(stream.name)
    voice.fault(
        "Bug",
        f"This is a bug in histoscribe, not in your data: {type(error).__name__}: {error}. "
        f"The full record is in {path}; please send it with your report.",
        BUG,
    )
    return BUG


if __name__ == "__main__":
    sys.exit(main())
