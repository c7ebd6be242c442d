"""The documentation: the site builds, and what README and the pages link to is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli.main import COMMANDS

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
MADE = re.compile(r"(\.\./)?reference/(commands|settings|errors)\.md")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_site_has_every_command_and_setting(site: Path) -> None:
    commands = (site / "reference/commands/index.html").read_text()
    settings = (site / "reference/settings/index.html").read_text()
    for name in COMMANDS:
        assert f'id="smec-{name}"' in commands
        assert f'id="{name}"' in settings
    for name in ("temperature", "gate.max_loss", "publish.keep", "cpus_per_worker"):
        assert f"<code>{name}</code>" in settings


def test_the_site_has_the_errors(site: Path) -> None:
    errors = (site / "reference/errors/index.html").read_text()
    assert "is a folder; name a file" in errors
    assert errors.count("<code>InputError</code>") > 100


def test_the_site_needs_no_network(site: Path) -> None:
    """No script, style, font or picture comes from elsewhere."""
    for page in site.rglob("*.html"):
        text = re.sub(r"<pre>.*?</pre>", "", page.read_text(), flags=re.DOTALL)
        found = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]*)"', text)
        assert found == [], page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    """In the repository, where a page is read without the site."""
    for link in LINK.findall(page.read_text()):
        target = link.partition("#")[0]
        if target and not re.match(r"[a-z]+:", target) and not MADE.fullmatch(target):
            assert (page.parent / target).exists(), link


def test_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 200
