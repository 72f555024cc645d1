"""The verbs as commands. A verb's module is loaded when that verb is called: help stays quick."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import io
import os
import shlex
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from mobilefit import __version__
from mobilefit.errors import MobilefitError, Terminated, unknown
from mobilefit.text import EscapedStream, address_without_secrets


class Verb(NamedTuple):
    """Where a verb is, and what it does in a line."""

    home: str
    config: str
    help: str


VERBS: dict[str, Verb] = {
    "design": Verb("commands.design", "DesignConfig", "The main job: images and a latency budget in, a measured network out."),
    "search": Verb("jobs.search", "SearchConfig", "Block-wise search for a seed network (platform-aware NAS)."),
    "info": Verb("jobs.info", "InfoConfig", "A network as the paper's table, with its costs."),
    "train": Verb("jobs.train", "TrainConfig", "Train a network on your images."),
    "evaluate": Verb("jobs.evaluate", "EvaluateConfig", "Accuracy of weights or of a LiteRT file."),
    "predict": Verb("jobs.predict", "PredictConfig", "What a LiteRT file sees in images, a video, a camera."),
    "demo": Verb("jobs.demo", "DemoConfig", "A web page here where one drops an image or uses the camera."),
    "adapt": Verb("jobs.adapt", "AdaptConfig", "NetAdapt: shrink a trained network to a latency."),
    "quantize": Verb("jobs.quantize", "QuantizeConfig", "A float32 LiteRT file to int8."),
    "export": Verb("jobs.export", "ExportConfig", "Trained weights to files: LiteRT, ONNX, torch.export, ExecuTorch."),
    "bench": Verb("jobs.bench", "BenchConfig", "Latency of files, side by side."),
    "report": Verb("jobs.report", "ReportConfig", "The HTML page of a run, made anew from its records."),
    "doctor": Verb("jobs.doctor", "DoctorConfig", "Is this machine ready, and are these images usable?"),
}  # fmt: skip

_SPACE = "free some space or choose another folder, then run it again"
_RIGHTS = "choose another folder or file, or allow access to it"
_OPEN_FILES = "allow more open files: ulimit -n 4096"
REFUSALS: dict[int, str | None] = {
    errno.ENOSPC: _SPACE, errno.EDQUOT: _SPACE, errno.EROFS: _RIGHTS, errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS,
    errno.EMFILE: _OPEN_FILES, errno.ENFILE: _OPEN_FILES, errno.EIO: None, errno.ENAMETOOLONG: None, errno.ELOOP: None,
    errno.ENOTDIR: None, errno.EISDIR: None, errno.EEXIST: None,
}  # fmt: skip
"""Errors of the system that say nothing of the program, with what to do: a full disk, a file where a folder is to be.

Any other may be a defect of ours, above all a file that is missing: those of the user are looked for where they are
read."""
INTERRUPTED = 130
TERMINATED = 143


class Verbs(click.Group):
    """Finds a verb by its name, and names the nearest one for a misspelt one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, the main one first."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The verb's command; its options are known only when it is called."""
        if cmd_name not in VERBS:
            raise unknown("verb", cmd_name, VERBS)
        return LazyCommand(cmd_name, help=VERBS[cmd_name].help)


class LazyCommand(click.Command):
    """A verb whose module is loaded when its options are needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options, made of the configuration's fields."""
        if not self.params:
            self.params = _parameters(self._load()[0])
        return super().get_params(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The arguments too, which click leaves to the usage line."""
        fields = [f for f in dataclasses.fields(self._load()[0]) if f.metadata["argument"]]
        if fields:
            with formatter.section("Arguments"):
                formatter.write_dl([(f.name.upper(), f.metadata["help"]) for f in fields])
        super().format_options(ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Call the verb's function."""
        config, function = self._load()
        try:
            result = function(config(**ctx.params))
            sys.stdout.flush()
        except BrokenPipeError:  # the reader left, as `| head` does: click would exit with 1
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return None
        return result

    def _load(self) -> tuple[type[Any], Callable[[Any], Any]]:
        assert self.name is not None
        verb = VERBS[self.name]
        module = importlib.import_module(f"mobilefit.{verb.home}")
        return getattr(module, verb.config), getattr(module, self.name)


def _parameters(config: type[Any]) -> list[click.Parameter]:
    hints = typing.get_type_hints(config)
    fields = sorted(dataclasses.fields(config), key=lambda field: bool(field.metadata.get("detail")))
    return [_parameter(field, hints[field.name]) for field in fields]


def _parameter(field: dataclasses.Field[Any], hint: Any) -> click.Parameter:
    required = field.default is dataclasses.MISSING
    # click 8.3 takes a default of None for a value: a required field must have none at all
    default: dict[str, Any] = {} if required else {"default": field.default}
    if field.metadata["argument"]:
        many = typing.get_origin(hint) is tuple
        kind = _kind(typing.get_args(hint)[0] if many else hint)
        return click.Argument(
            [field.name], type=kind, nargs=-1 if many else 1, required=required, **default
        )
    name = f"--{field.name.replace('_', '-')}"
    if hint is bool:
        return click.Option([name, field.name], is_flag=True, help=field.metadata["help"])
    if _kind(hint) is bool:  # or None: left as it is
        return click.Option(
            [f"{name}/--no-{name[2:]}", field.name], default=None, help=field.metadata["help"]
        )
    if typing.get_origin(hint) is tuple:
        return click.Option(
            [name, field.name], type=_kind(typing.get_args(hint)[0]), multiple=True, default=(),
            help=field.metadata["help"],
        )  # fmt: skip
    return click.Option(
        [name, field.name], type=_kind(hint), required=required, help=field.metadata["help"],
        show_default=default.get("default") is not None, **default,
    )  # fmt: skip


def _kind(hint: Any) -> Any:
    """click's type for an annotation: ``X | None`` is X, a Literal is a choice."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return click.Choice(typing.get_args(hint))
    return click.Path(path_type=Path) if hint is Path else hint


@click.command(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="mobilefit")
def _mobilefit() -> None:
    """Your images and a latency budget in; a trained, quantized, measured network that fits out."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; the result is the exit code.

    0: done; 2: bad input; 3: a quality gate failed; 130: interrupted; 143: terminated.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # a name that a terminal lacks letters for is no failure
    with (
        _sigterm_raises(), contextlib.redirect_stdout(EscapedStream(sys.stdout)),
        contextlib.redirect_stderr(EscapedStream(sys.stderr, progress=True)),
    ):  # fmt: skip
        return _answered(sys.argv[1:] if arguments is None else arguments)


def _answered(words: list[str]) -> int:
    """The exit code of a command line, all errors told."""
    try:
        _mobilefit(args=words, prog_name="mobilefit", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.UsageError as error:
        verb = error.ctx.info_name if error.ctx and error.ctx.parent else None
        return _fail(error.format_message(), f"see mobilefit {f'{verb} ' if verb else ''}--help", 2)
    except click.exceptions.Exit as end:
        return end.exit_code
    except MobilefitError as error:
        return _fail(error.message, error.hint, error.exit_code)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror}", REFUSALS[error.errno], 2)
    except (click.Abort, KeyboardInterrupt) as stop:
        if isinstance(stop, Terminated) or isinstance(stop.__cause__, Terminated):  # click wraps it
            return _stopped(words, "terminated", TERMINATED)
        return _stopped(words, "interrupted", INTERRUPTED)
    return 0


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Within the block SIGTERM is an exception, so that what is open is closed; then it is what it was.

    A program that calls :func:`main` and forks later would give the exception to children that wait for
    the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: it was no handler of Python's


def _on_sigterm(number: int, frame: types.FrameType | None) -> None:
    raise Terminated


def _fail(message: str, hint: str | None, code: int) -> int:
    line = " ".join(message.split())
    print(f"mobilefit: {line}" + (f"; {hint}" if hint else ""), file=sys.stderr)
    return code


def _stopped(words: list[str], how: str, code: int) -> int:
    resumable = {"design": [], "search": [], "adapt": [], "quantize": [], "train": ["--resume"]}
    verb = words[0] if words else ""
    line = f"mobilefit: {how}"
    if verb in resumable:
        again = [*words, *(w for w in resumable[verb] if w not in words)]
        line += f"; go on with: {shlex.join(['mobilefit', *map(address_without_secrets, again)])}"
    print(line, file=sys.stderr)
    return code
