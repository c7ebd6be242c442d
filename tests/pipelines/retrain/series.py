"""A series of models on a small dataset that changes."""

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from pipelines.cli.settings import resolve
from pipelines.retrain import job as retrain
from pipelines.retrain import rollback
from pipelines.retrain.settings import RetrainSettings, RollbackSettings
from smec_core.data.uri import join_uri, open_filesystem, public_uri
from smec_core.data.versions import current
from smec_core.model.files import load
from smec_core.yaml_file import dump, read_mapping
from tests.builders import write_dataset

SETTINGS: dict[str, Any] = {
    # trains in a second, and the better the more queries it has
    # a closed form makes the most of the first judgements already, so that more of them would release no other model
    "train": {
        "dims": [16, 8],
        "epochs": 20,
        "lr": 0.01,
        "batch_size": 32,
        "negatives": 64,
        "init": "pca",
        "favour": "all",
    },
    # a test's few queries prove little
    "gate": {"significance": 1, "min_queries": 20},
}


class Series:
    """Dataset, storage and published folder of a series, with a config file for them.

    `output` and `storage` are on disk; `published` and `stored` say where they are, also on S3.
    """

    def __init__(
        self, folder: Path, kept: Path | None = None, s3: Callable[[str], str] | None = None, **size: int
    ) -> None:
        self.folder, self.name = folder, f"series-{uuid.uuid4().hex[:8]}"
        self.data, self.output = write_dataset(folder / "data", **size), (kept or folder) / "vectors"
        self.storage = (kept or folder) / "storage"
        self.published, self.stored = (s3(path.name) if s3 else str(path) for path in (self.output, self.storage))
        self.config = folder / "retrain.yaml"
        places = {"name": self.name, "data": str(self.data), "storage": self.stored}
        publish = {"publish": {"output": self.published, "dim": 16}}
        self.config.write_text(dump({**places, **SETTINGS, **publish}))
        self._judgements = {name: pq.read_table(self._qrels(name)) for name in ("train", "test")}

    def configure(self, section: str, **settings: float) -> None:
        """Changes settings of a section."""
        config = read_mapping(self.config)
        config[section] |= settings
        self.config.write_text(dump(config))

    def _qrels(self, split: str) -> Path:
        return self.data / "qrels" / f"{split}.parquet"

    def judge(self, share: float, shuffled: tuple[str, ...] = ()) -> None:
        """Gives a share of the train queries judgements; those of shuffled splits name other documents."""
        for split, table in self._judgements.items():
            rows = table.slice(0, int(share * len(table))) if split == "train" else table
            if split in shuffled:
                docs = np.random.default_rng(0).permutation(rows["doc_id"].to_numpy(zero_copy_only=False))
                rows = rows.set_column(rows.column_names.index("doc_id"), "doc_id", pa.array(docs))
            pq.write_table(rows, self._qrels(split))

    def retrain(self, *assignments: str) -> dict[str, Any]:
        return retrain.run(resolve(RetrainSettings, {}, self.config, assignments))

    def rollback(self, to: str | None = None) -> dict[str, Any]:
        return rollback.run(resolve(RollbackSettings, {"to": to}, self.config))

    @property
    def champion(self) -> ModelVersion | None:
        """What the registry's alias names."""
        aliases = MlflowClient().get_registered_model(self.name).aliases
        return MlflowClient().get_model_version(self.name, aliases["champion"]) if "champion" in aliases else None

    @property
    def version(self) -> str:
        """The published version in force."""
        return current(self.published).partition("?")[0].rpartition("/")[2]

    def check_whole(self) -> str:
        """Asserts that what is in force is whole, and made by the champion, as a reader meets it; its fingerprint."""
        filesystem, folder = open_filesystem(current(self.published))
        with filesystem.open_input_stream(f"{folder}/_manifest.json") as content:
            manifest = json.loads(content.read())
        for file in manifest["files"]:
            assert filesystem.get_file_info(f"{folder}/{file['name']}").size == file["bytes"]
        fingerprint: str = manifest["model_fingerprint"]
        stored = join_uri(self.stored, "/".join(manifest["model"].split("/")[-2:]))
        assert manifest["model"] == public_uri(stored)
        assert load(stored).fingerprint == fingerprint
        return fingerprint

    def tree(self) -> dict[str, bytes]:
        """All files of storage and published folder, but for locks and what a kill leaves half written."""
        files = [path for root in (self.storage, self.output) for path in root.rglob("*") if path.is_file()]
        left = {".tmp", ".new"}
        kept = [path for path in files if not {path.suffix, path.parent.suffix} & left and path.name != ".lock"]
        return {os.path.relpath(path, self.folder): path.read_bytes() for path in kept}
