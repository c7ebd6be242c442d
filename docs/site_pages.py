"""Makes the pages of the site that come from the code and from results/: commands, settings, errors, evidence."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import mkdocs_gen_files
from pydantic import BaseModel

from pipelines.cli.help import describe
from pipelines.cli.main import COMMANDS, app

ROOT = Path(__file__).parents[1]
EXIT_CODES = """\
| exit code | means |
|---|---|
| 0 | done, or there was nothing to do |
| 1 | the run failed: trying again may help |
| 2 | bad usage, bad input, or stored state that is damaged |
| 3 | `smec retrain`: the new model was refused, and the champion stays |
| 4 | another process trains the run or series of this name, or writes this dataset |
| 129, 130, 143 | ended by SIGHUP, SIGINT (Ctrl-C) or SIGTERM |
"""


def write(name: str, text: str) -> None:
    """Makes a page."""
    with mkdocs_gen_files.open(name, "w") as file:
        file.write(text)


def settings_class(name: str) -> type[BaseModel]:
    """The settings class of a command."""
    module, _, kind = COMMANDS[name].settings.partition(":")
    found: type[BaseModel] = getattr(importlib.import_module(module), kind)
    return found


def commands() -> str:
    """A page of what `--help` prints."""
    parts = ["# Commands\n", f"What `smec COMMAND --help` prints.\n\n{EXIT_CODES}"]
    for name in COMMANDS:
        command = app.get_command(click.Context(app), name)
        assert command is not None
        with click.Context(command, info_name=f"smec {name}", max_content_width=100) as context:
            parts.append(f"## smec {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts) + "\n"


def settings() -> str:
    """A table of settings for each command; what several share stands once."""
    parts = [
        "# Settings\n",
        "Every setting has a default. A flag beats `--set KEY=VALUE`, `--set` beats the file of `--config`, the file "
        "beats `--preset`. Settings with a dot are in a section of the file.\n",
    ]
    seen: dict[tuple[str, str], str] = {}
    for name in COMMANDS:
        rows: list[str] = []
        shared: dict[str, list[str]] = {}
        for setting, kind, default, text in describe(settings_class(name)):
            first = seen.setdefault((setting, text), name)
            if first == name:
                rows.append(f"| `{setting}` | {cell(kind)} | {cell(default)} | {cell(text)} |")
            else:
                shared.setdefault(first, []).append(setting)
        parts.append(f"## {name}\n")
        if rows:
            parts.append("\n".join(["| setting | value | default | |", "|---|---|---|---|", *rows]) + "\n")
        for first, names in shared.items():
            parts.append(f"As for [{first}](#{first}): " + ", ".join(f"`{one}`" for one in names) + ".\n")
    return "\n".join(parts)


def cell(text: str) -> str:
    """A text in a table or list: what is between backticks is code, and nothing else means anything to Markdown."""
    in_one_line = " ".join(text.split())
    return "`".join(
        re.sub(r"([\\*_\[\]<>|#])", r"\\\1", part) if number % 2 == 0 else part.replace("|", r"\|")
        for number, part in enumerate(in_one_line.split("`"))
    )


def errors() -> str:
    """All errors that the code raises, with their cures, by the module that raises them."""
    parts = [
        "# Errors\n",
        "Every line with which a command may end, as the code has it; names in braces stand for what is put in. Search "
        "this page for the words of your line. Each says what to do; [Troubleshooting](../troubleshooting.md) has "
        "more on those that need it.\n",
    ]
    for package in ("pipelines", "smec_core", "tune_spaces"):
        for path in sorted((ROOT / package).rglob("*.py")):
            found = sorted(set(messages(ast.parse(path.read_text()))))
            if found:
                parts.append(f"## {path.relative_to(ROOT)}\n")
                parts.append("\n".join(f"- `{kind}`: {cell(text)}" for kind, text in found) + "\n")
    return "\n".join(parts)


def messages(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Name of the class and text of each error that is made somewhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and re.search(r"Error$|^RayFailure$", ast.unparse(node.func)):
            text = template(node.args[0])
            if " " in text.strip():
                yield ast.unparse(node.func).rpartition(".")[2], text


def template(node: ast.expr) -> str:
    """A string with its fields in braces; empty where it is made elsewhere."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{" + ast.unparse(part.value) + "}"
            for part in node.values
            if isinstance(part, ast.Constant | ast.FormattedValue)
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return ""


write("reference/commands.md", commands())
write("reference/settings.md", settings())
write("reference/errors.md", errors())
for page in ("CHANGELOG.md", "CONTRIBUTING.md"):
    write(page, (ROOT / page).read_text())
for file in sorted((ROOT / "results").glob("*/*")):
    if file.suffix in (".md", ".svg", ".png", ".csv"):
        with mkdocs_gen_files.open(str(file.relative_to(ROOT)), "wb") as made:
            made.write(file.read_bytes())
