"""The `smec` command. Each command is made from its settings class, which is imported when the command is asked for."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click
from pydantic import BaseModel

from pipelines.cli.command import run_job
from pipelines.cli.help import SettingsCommand, flags_of, option_of
from smec_core import __version__
from smec_core.shown import safe_line

EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 bad usage or bad input, 3 a new model was refused, 4 another process has the run, "
    "129, 130, 143 ended by SIGHUP, SIGINT (Ctrl-C), SIGTERM, and a line says what running "
    "the same command again will do."
)

ANEW = "the same command starts anew"
ON = "the same command goes on where it stopped"


@dataclass(frozen=True)
class Command:
    """A command of smec.

    Attributes:
        about: one line for `smec --help`; the settings' docstring is the whole help.
        settings: module and class of its settings.
        run: module that has its `run`.
        arguments: settings that are given by their place.
        flags: settings that have a flag of their own; `setting=--flag` where its name is another. All others are given
            by --set and --config.
        presets: whether there is --preset.
        has_figures: whether there is --json.
        implied: settings that a flag sets beside its own.
        rerun: what the same command does after a signal.
    """

    about: str
    settings: str
    run: str
    arguments: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    presets: bool = False
    has_figures: bool = True
    implied: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rerun: str = ANEW


def _job(about: str, name: str, arguments: str = "", flags: str = "", **more: Any) -> Command:
    settings = f"pipelines.{name}.settings:{name.capitalize()}Settings"
    return Command(about, settings, f"pipelines.{name}.job", tuple(arguments.split()), tuple(flags.split()), **more)


COMMANDS = {
    "sample": Command(
        "Build a sample dataset, without a download.",
        "pipelines.data.settings:SampleSettings",
        "pipelines.data.sample",
        ("out",),
        ("size",),
    ),
    "check": Command(
        "Validate a dataset row by row and print what it holds.",
        "pipelines.data.settings:CheckSettings",
        "pipelines.data.check",
        ("data",),
        ("by",),
    ),
    "ingest": _job("Embed text into a dataset.", "ingest", "source output", "encoder workers gpu", rerun=ON),
    "judge": _job("Make judgements of a click log.", "judge", "clicks data", "test_from replace"),
    "train": _job(
        "Train a nested embedding and evaluate it.",
        "train",
        flags="data dims out workers gpu base=--from warm_start compatible storage name seed dry_run",
        presets=True,
        rerun=ON,
    ),
    "tune": _job(
        "Search settings of the method by dev figures.",
        "tune",
        flags="data space dims out trials hours objective workers gpu confirm train_best=--refit storage name seed",
        rerun=ON,
    ),
    "experiment": _job(
        "Run one of the paper's experiments on any dataset.",
        "experiment",
        "experiment",
        "data dims out seeds methods direction exclude_self",
        rerun=ON,
    ),
    "evaluate": _job(
        "Score a model, or whole searches with it.",
        "evaluate",
        flags="data model split by baselines workers exclude_self index funnel dtype shortlist",
    ),
    "compress": _job(
        "Compress embeddings with a model.",
        "compress",
        flags="model input output dim dtype on_bad_row upgrade workers gpu",
        rerun=ON,
    ),
    "retrain": _job(
        "Train a challenger, and release it where it wins.",
        "retrain",
        flags="train.compatible",
        implied={"train.compatible": {"train.start": "warm"}},
        rerun=ON,
    ),
    "rollback": Command(
        "Put an earlier release in force again.",
        "pipelines.retrain.settings:RollbackSettings",
        "pipelines.retrain.rollback",
        flags=("to",),
        rerun=ON,
    ),
    "status": Command(
        "Tell how a series stands, and what of it is damaged.",
        "pipelines.retrain.settings:StatusSettings",
        "pipelines.retrain.status",
        flags=("deep",),
    ),
    "clean": Command(
        "Remove what a series does not need any more.",
        "pipelines.retrain.settings:CleanSettings",
        "pipelines.retrain.clean",
        flags=("dry_run",),
        rerun=ON,
    ),
    "verify": _job("Compare what is stored with its checksums.", "verify", "path"),
    "export": _job("Export a model to another tool.", "export", flags="model to out dim encoder"),
    "serve": _job("Serve a model over HTTP.", "serve", flags="model host port replicas", has_figures=False),
    "submit": _job(
        "Run a command as a job of a cluster.",
        "submit",
        "command",
        "address id env detach",
        rerun="the same command finds the job, if it was submitted",
    ),
    "report": _job("Write a page about a model or a study.", "report", "folder", "out"),
}


GROUPS = {
    "Data": ("sample", "check", "ingest", "judge"),
    "Train and compare": ("train", "tune", "evaluate", "experiment", "report"),
    "Use": ("compress", "export", "serve"),
    "Keep up to date": ("retrain", "status", "rollback", "verify", "clean"),
    "Cluster": ("submit",),
}
"""Commands by what one wants to do, as `smec --help` shows them."""

COMMON = ("preset", "config", "assign", "json_file")
"""Parameters that are no settings."""


@contextmanager
def _safe_usage() -> Iterator[None]:
    """What click says of a wrong command line repeats words of it."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = safe_line(error.message)
        raise


class Smec(click.Group):
    """The group of all commands, each made when it is asked for: `smec --help` imports no settings."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """Reads the command line."""
        with _safe_usage():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """Reads what belongs to the command, and runs it."""
        with _safe_usage():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Makes a command."""
        return make_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a line for each command, in groups."""
        width = max(map(len, COMMANDS))
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), COMMANDS[name].about) for name in names])


def make_command(name: str) -> SettingsCommand:
    """Makes a command from its settings class."""
    command = COMMANDS[name]
    module, _, class_name = command.settings.partition(":")
    kind = getattr(importlib.import_module(module), class_name)
    params: list[click.Parameter] = []
    for setting in command.arguments:
        # what follows the command that smec submit takes belongs to that
        is_rest = setting == "command"
        params.append(
            click.Argument(
                [setting],
                nargs=-1 if is_rest else 1,
                required=True,
                metavar=setting.upper() + "..." * is_rest,
                type=str,
            )
        )
    params += [option_of(kind, *flag.partition("=")[::2]) for flag in command.flags]
    if command.presets:
        params.append(
            click.Option(
                ["--preset"], metavar="NAME", help="paper: the method as published. fast: a closed form, no training."
            )
        )
    params += [
        click.Option(["--config"], metavar="FILE", help="YAML file of settings, one key: value a line."),
        click.Option(
            ["--set", "assign"],
            metavar="KEY=VALUE",
            multiple=True,
            help="Any setting, may be given again; wins over --config.",
        ),
    ]
    if command.has_figures:
        params.append(click.Option(["--json", "json_file"], metavar="FILE", help="Write the figures to this file."))

    def callback(**values: Any) -> None:
        flags, common = parted(name, kind, values)
        run_job(name, command.run, kind, flags, **common, rerun=command.rerun)

    return SettingsCommand(
        name,
        kind=kind,
        params=params,
        callback=callback,
        context_settings={"allow_interspersed_args": name != "submit", "help_option_names": ["--help"]},
    )


def parted(name: str, kind: type[BaseModel], values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that a command line gives by flags and arguments, with those they imply, and all else of it."""
    common = {key: values.get(key) for key in COMMON}
    flags = flags_of(kind, {param: value for param, value in values.items() if param not in COMMON})
    for setting, implied in COMMANDS[name].implied.items():
        if flags[setting] is not None:
            flags |= implied
    return flags, common


app = Smec(
    "smec",
    help="Learns one small nested vector from your embeddings and judgements, and compresses your corpus with it.",
    epilog=EPILOG,
    no_args_is_help=True,
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=lambda context, _, wanted: _print_version(context) if wanted else None,
            help="Print the version.",
        )
    ],
)


def _print_version(context: click.Context) -> None:
    click.echo(f"smec {__version__}")
    context.exit()
