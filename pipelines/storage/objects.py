"""Conditional writes to object stores, which PyArrow does not offer: of two writers the slower one is refused.

Works on S3 and what speaks its protocol, on Google Cloud Storage and on Azure; the store itself checks the condition.
"""

import os
from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qs, unquote

import obstore
import pyarrow as pa
import pyarrow.fs as pafs
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from smec_core.data.uri import public_uri, split_uri
from smec_core.errors import InputError, StoreError, StoreUnreachable, first_line, one_line


def swap(uri: str, path: str, seen: bytes | None, content: bytes | None) -> bool:
    """Replaces a small object only where it still holds `seen`; see `pipelines.storage.files.swap`.

    Args:
        uri: of the object.
        path: bucket and key, as the URI's file system has them.
        seen: its bytes; None where there was no object.
        content: what it is to hold; None removes it.

    Returns:
        Whether it was replaced.

    Raises:
        InputError: no conditional write is known for this kind of store, or it refuses.
        StoreUnreachable: the store does not answer.
    """
    try:
        store, key = _open(uri, path)
        meta, there = _read(store, key)
        if there != seen:
            return False
        if content is None:
            # stores remove without conditions: what is removed so may only be written by who holds it
            obstore.delete(store, key)
            return True
        try:
            # S3 and Azure ask for the tag, Google for the version
            condition = {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}
            obstore.put(store, key, content, mode="create" if seen is None else condition)  # type: ignore[arg-type]
            return True
        except (AlreadyExistsError, PreconditionError, NotFoundError):
            # a write whose answer was lost is tried again by the client, and then finds itself
            return _read(store, key)[1] == content
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise StoreError(f"{public_uri(uri)}: cannot be written ({first_line(error)}); check its role") from error
    except BaseError as error:
        raise StoreUnreachable(f"{public_uri(uri)}: cannot be written now ({first_line(error)}); run again") from error


def _read(store: ObjectStore, key: str) -> tuple[dict[str, Any], bytes | None]:
    try:
        found = obstore.get(store, key)
        return dict(found.meta), bytes(found.bytes())
    except FileNotFoundError:
        return {}, None


def _open(uri: str, path: str) -> tuple[ObjectStore, str]:
    """The store and key of an object, from a URI as PyArrow reads it."""
    parts = split_uri(uri)
    user, _, host = parts.host.rpartition("@")
    name, _, secret = user.partition(":")
    options = {key: values[-1] for key, values in parse_qs(parts.options.removeprefix("?")).items()}
    bucket, _, key = path.partition("/")
    try:
        if parts.scheme == "s3":
            return S3Store(bucket, **_s3_options(bucket, options, unquote(name), unquote(secret))), key
        if parts.scheme in ("gs", "gcs"):
            return GCSStore(bucket), key
        if parts.scheme in ("abfs", "abfss"):
            return AzureStore(bucket, account_name=(host or parts.host).partition(".")[0]), key
    except (BaseError, ValueError, OSError, pa.ArrowException) as error:
        raise InputError(f"{public_uri(uri)}: cannot be opened ({one_line(error)})") from error
    raise InputError(f"{public_uri(uri)}: no conditional writes are known for {parts.scheme}://; use s3, gs or abfs")


def _s3_options(bucket: str, options: dict[str, str], name: str, secret: str) -> dict[str, Any]:
    scheme, endpoint, region = (options.get(key, "") for key in ("scheme", "endpoint_override", "region"))
    config: dict[str, Any] = {"client_options": {"allow_http": scheme == "http"}}
    if endpoint:
        config["endpoint"] = endpoint if "://" in endpoint else f"{scheme or 'https'}://{endpoint}"
    if region or not (endpoint or {"AWS_REGION", "AWS_DEFAULT_REGION"} & os.environ.keys()):
        # as PyArrow finds it
        config["region"] = region or pafs.resolve_s3_region(bucket)
    if name:
        config |= {"access_key_id": name, "secret_access_key": secret}
    elif "AWS_ACCESS_KEY_ID" not in os.environ and find_spec("boto3"):
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider

        # profiles of ~/.aws, which PyArrow reads by itself
        session = boto3.Session()
        if session.get_credentials() is not None:
            config["credential_provider"] = Boto3CredentialProvider(session)
    return config
