"""Paths and URIs: what lies in a folder, where it is, and how it may be shown."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from smec_core.data.hub import HubFiles, open_hub
from smec_core.data.object_store import ToldErrors
from smec_core.errors import InputError, one_line
from smec_core.masking import mask

# a URI that has lost a slash would pass for the name of a local folder
HALF_A_URI = re.compile(r"(?i)(file|s3a?|gs|gcs|abfss?|hdfs|https?|hf):(?!//)")


class UriParts(NamedTuple):
    """A URI as the user wrote it; `path` has no percent escapes but those of file://."""

    scheme: str
    host: str
    path: str
    options: str


def split_uri(uri: str) -> UriParts:
    """The parts of a URI."""
    scheme, _, rest = uri.partition("://")
    place, mark, options = rest.partition("?")
    host, slash, path = place.partition("/")
    return UriParts(scheme, host, slash + path, mark + options)


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Resolves a local path or a URI (s3://, gs://, hf://, file://) to a file system and a path on it.

    The only place that opens one. A key of an object store is what the user wrote, character by character, as its own
    tools have it: `#`, `%` and spaces are themselves. In file:// they are escaped (%20), as everywhere.

    Raises:
        InputError: no such file system, an empty path, or a URI that could mean another place than the user wrote.
    """
    if not uri:
        # a variable that is not set, as in a line of cron; it would be the working directory
        raise InputError("the path is empty; name a file or folder")
    if "://" not in uri:
        if HALF_A_URI.match(uri):
            raise InputError(f"{uri}: is half a URI; write {uri.partition(':')[0]}://..., or ./{uri} for a local path")
        path = str(Path(uri).absolute())
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            # the reader says what is missing
            pass
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be accessed ({one_line(error)}); name another place") from error
        return pafs.LocalFileSystem(), path
    shown, parts = public_uri(uri), split_uri(uri)
    if problem := _ambiguity(parts):
        raise InputError(f"{shown}: {problem}")
    if parts.scheme == "hf":
        return open_hub(shown)
    path = parts.path if parts.scheme == "file" else quote(parts.path)
    try:
        filesystem, found = pafs.FileSystem.from_uri(f"{parts.scheme}://{parts.host}{path}{parts.options}")
    except (pa.ArrowException, OSError, ValueError) as error:
        # what pyarrow says may repeat the URI, with credentials
        problem = one_line(error).replace(f"{parts.host}{path}{parts.options}", shown.partition("://")[2])
        raise InputError(f"{shown}: cannot open this URI ({mask(problem)})") from None
    if isinstance(filesystem, pafs.LocalFileSystem):
        return filesystem, found
    return pafs.PyFileSystem(ToldErrors(filesystem, found, shown)), found


def shown_path(filesystem: pafs.FileSystem, path: str) -> str:
    """A path on a file system as messages name it: of an object store or the Hub the URI."""
    handler = getattr(filesystem, "handler", None)
    return handler.shown(path) if isinstance(handler, ToldErrors | HubFiles) else path


def _ambiguity(parts: UriParts) -> str | None:
    """Why a URI could be taken for another place than the user wrote."""
    written = f"{parts.host}{parts.path}{parts.options}"
    if not written.isprintable():
        return "has a control character in it; write the name as it is"
    if parts.scheme == "file" and (parts.options or "#" in parts.path):
        return "'?' and '#' end the path of a file:// URI; write %3F and %23, or give the path without file://"
    if parts.scheme == "hf" and parts.options:
        return "has '?' in it, and hf:// has no options; the token is read from HF_TOKEN"
    if "#" in parts.host + parts.options:
        return "has '#' outside the path; remove it and what follows"
    names = parts.path.strip("/").split("/") if parts.path.strip("/") else []
    if {".", ".."} & set(names):
        return f"has {next(name for name in names if name in ('.', '..'))!r} in its path; write the path out"
    if "" in names:
        return "has '//' in its path; write one slash"
    return None


def join_uri(uri: str, name: str) -> str:
    """Path or URI of something in a folder; options of a URI ("?region=...") stay at its end.

    Raises:
        InputError: the folder's path is empty; what is joined would lie in the root.
    """
    if not uri:
        raise InputError("the path is empty; name a file or folder")
    folder, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{without_slash(folder).removesuffix('/')}/{name}{mark}{options}"


def without_slash(path: str) -> str:
    """A path or URI without slashes at its end, but for that of the root."""
    scheme, mark, rest = path.rpartition("://")
    return f"{scheme}{mark}{rest.rstrip('/') or rest[:1]}"


def is_within(uri: str, folder: str) -> bool:
    """Whether a path or URI is a folder or lies in it, links and ways to write a place considered; opens nothing."""
    place, other = _place_of(uri), _place_of(folder)
    return place == other or place.startswith(f"{other.rstrip('/')}/")


def _place_of(uri: str) -> str:
    """A path or URI in the one form that all ways to write the same place have."""
    parts = split_uri(uri)
    if "://" not in uri or parts.scheme == "file":
        with suppress(ValueError):
            return os.path.realpath(unquote(parts.path) if "://" in uri else uri)
        # a NUL in it, which who opens it tells
        return uri
    scheme = {"s3a": "s3", "gcs": "gs"}.get(parts.scheme, parts.scheme)
    # buckets of two servers may have one name
    server = "".join(parse_qs(parts.options.removeprefix("?")).get("endpoint_override", []))
    return f"{server} {scheme}:{public_uri(uri).partition(':')[2].rstrip('/')}"


def public_uri(uri: str) -> str:
    """A path or URI as a manifest may show it: absolute, without credentials and options."""
    if "://" not in uri:
        return str(Path(uri).absolute())
    parts = split_uri(uri)
    user, mark, host = parts.host.rpartition("@")
    # what stands there in Azure is the container
    kept = user + mark if parts.scheme in ("abfs", "abfss") and ":" not in user else ""
    return f"{parts.scheme}://{kept}{host}{parts.path}"
