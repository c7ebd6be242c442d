"""A dataset in the memory of this one process: training without a cluster, for tests, notebooks and single machines."""

import torch

from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.parquet import EmbeddingTable, unit_rows
from smec_core.distributed.resident import Node, ResidentRows
from smec_core.training.context import TrainingData


def load_training_data(dataset: Dataset, config: TrainConfig, device: torch.device | str = "cpu") -> TrainingData:
    """Reads a dataset whole.

    Example:
        >>> data = load_training_data(Dataset.open("data/products"), config)
        >>> trained = train(data, config, NullTracker())
    """
    node = Node(device=torch.device(device))
    docs, queries = (read_resident(table, node) for table in (dataset.corpus, dataset.queries))
    return TrainingData(docs, queries, *dataset.training_split(config), node)


def read_resident(table: EmbeddingTable, node: Node) -> ResidentRows:
    """Reads a table's rows as unit vectors, and checks every one."""
    matrix_ND = torch.empty(table.rows, table.dim)
    for block in table.blocks():
        matrix_ND[block.row : block.row + len(block.ids)] = torch.from_numpy(unit_rows(block.vectors_ND))
    return ResidentRows(matrix_ND, node)
