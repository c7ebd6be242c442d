"""What a Kubernetes cluster with KubeRay makes of a file, as far as schemas tell."""

import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

KUBERNETES = "1.34"
FIELDS = Path(__file__).with_name("kuberay-fields.yaml")
PLAIN = {"string", "integer", "number", "boolean"}
MAPS = {"rayStartParams", "labels", "annotations", "requests", "limits", "matchLabels", "nodeSelector"}
"""Fields whose keys are the user's."""


def problems(document: dict[str, Any]) -> list[str]:
    """Why the cluster would refuse the document, or drop a part of it; nothing where it takes all of it."""
    found = _validator(document["apiVersion"], document["kind"]).iter_errors(document)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def misspelt(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The document with one letter too many, once for each of its fields; with the place of that."""
    for path in _fields(document):
        if path in (("apiVersion",), ("kind",)):
            continue
        wrong = deepcopy(document)
        place = wrong
        for step in path[:-1]:
            place = place[step]
        place[f"{path[-1]}s"] = place.pop(path[-1])
        yield ".".join(map(str, path)), wrong


def _fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if not path or path[-1] not in MAPS:
                yield (*path, name)
            yield from _fields(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _fields(inner, (*path, index))


@cache
def _validator(version: str, kind: str) -> Draft202012Validator:
    if version == "ray.io/v1":
        return Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": _kuberay()}, registry=_kubernetes())
    # batch/v1, rbac.authorization.k8s.io/v1; plain v1 is that of the core
    group, _, number = version.rpartition("/")
    return Draft202012Validator(_schema(f"{group.partition('.')[0] or 'core'}.{number}.{kind}"), registry=_kubernetes())


def _kuberay() -> dict[str, Any]:
    """The types of KubeRay as JSON schemas, which know no other fields."""
    return {
        name: {
            "type": "object",
            "properties": {field: _schema(text.removesuffix("!")) for field, text in fields.items()},
            "required": [field for field, text in fields.items() if text.endswith("!")],
            "additionalProperties": False,
        }
        for name, fields in yaml.safe_load(FIELDS.read_text()).items()
    }


def _schema(text: str) -> dict[str, Any]:
    if text.endswith("[]"):
        return {"type": "array", "items": _schema(text.removesuffix("[]"))}
    if "|" in text:
        return {"enum": [choice for choice in text.split("|") if choice]}
    if text in PLAIN:
        return {"type": text}
    if text == "strings":
        return {"type": "object", "additionalProperties": {"type": "string"}}
    if "." in text:
        group = "io.k8s.apimachinery.pkg.apis" if text.startswith("meta.") else "io.k8s.api"
        return {"$ref": f"https://kubernetes.io/api/_definitions.json#/$defs/{group}.{text}"}
    return {"$ref": f"#/$defs/{text}"}


@cache
def _kubernetes() -> Registry[Any]:
    """The types of Kubernetes, from the package that carries them."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text())
    registry: Registry[Any] = Resource.from_contents(definitions) @ Registry()
    return registry
