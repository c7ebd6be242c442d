"""A dataset in the memory of this one process: training without a cluster, for tests, notebooks and single machines."""

import numpy as np
import torch

from smec_core.config import TrainConfig
from smec_core.dataset import Dataset
from smec_core.group import Group
from smec_core.parquet import EmbeddingTable, unit_rows
from smec_core.resident import ResidentRows
from smec_core.train import TrainingData


def load_training_data(dataset: Dataset, config: TrainConfig) -> TrainingData:
    """Reads a dataset whole.

    Example:
        >>> data = load_training_data(Dataset.open("data/products"), config)
        >>> trained = train(data, config, NullTracker())
    """
    return TrainingData(_read(dataset.corpus), _read(dataset.queries), *dataset.training_split(config))


def _read(table: EmbeddingTable) -> ResidentRows:
    rows_ND = np.concatenate([unit_rows(block.vectors_ND) for block in table.blocks()])
    return ResidentRows(torch.from_numpy(rows_ND), table.rows, Group())
