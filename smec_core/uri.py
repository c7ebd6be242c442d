"""Paths and URIs: what lies in a folder, where it is, and how it may be shown."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from smec_core.errors import InputError


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Resolves a local path or a URI (s3://, gs://, file://) to a file system and a path on it.

    Raises:
        InputError: no such file system, or a URI with ".." in its path, which object stores take for a name.
    """
    if "://" in uri:
        if ".." in urlsplit(uri).path.split("/"):
            raise InputError(f"{public_uri(uri)}: has '..' in its path; write the path out")
        try:
            return pafs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, OSError) as error:
            problem = str(error).replace(uri, public_uri(uri))
            raise InputError(f"{public_uri(uri)}: cannot open this URI ({problem})") from None
    return pafs.LocalFileSystem(), str(Path(uri).absolute())


def join_uri(uri: str, name: str) -> str:
    """Path or URI of something in a folder; options of a URI ("?region=...") stay at its end."""
    folder, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{folder.rstrip('/')}/{name}{mark}{options}"


def public_uri(uri: str) -> str:
    """A path or URI as a manifest may show it: absolute, without credentials and options."""
    if "://" not in uri:
        return str(Path(uri).absolute())
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def mask(text: str) -> str:
    """The text, with *** for the credentials of every URI in it."""
    text = re.sub(r"://(?:[^\s'\"/@]*:[^\s\"]*|[^\s'\"/]*)@", "://***@", text)
    return re.sub(r"(?i)([?&;][^=&;\s]*(?:pass|pwd|secret|token|key|odbc)[^=&;\s]*=)[^&;\s'\"]+", r"\1***", text)
