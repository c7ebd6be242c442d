"""`smec_core.fit`: a model out of arrays, tables or a dataset, trained in this process."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from smec_core.config import MEMORY_BUDGET, PRESETS, TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.forms import Qrels, Vectors, dataset_of
from smec_core.data.scan import is_small, scan_table
from smec_core.data.vectors import float32
from smec_core.distributed.resident import Node
from smec_core.errors import InputError
from smec_core.layers import merged
from smec_core.model.model import Model
from smec_core.training.finish import NO_PARENTS, Parents, finished_model
from smec_core.training.plan import plan_training
from smec_core.training.scanned import WantedRows
from smec_core.training.self_taught import shape_unread
from smec_core.training.tracker import StepBar
from smec_core.training.trainer import Hooks, train

log = logging.getLogger("smec_core")


def fit(
    corpus: Vectors | str | Path | Dataset,
    queries: Vectors = None,
    qrels: Qrels = None,
    *,
    dims: Sequence[int] | int | str,
    preset: Literal["paper", "fast"] | None = None,
    base: Model | str | Path | None = None,
    warm_start: Model | str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    device: str | torch.device | None = None,
    memory_budget: float = MEMORY_BUDGET,
    progress: bool = True,
    **settings: Any,
) -> Model:
    """Trains a nested embedding in this process, without a cluster, and evaluates it.

    The model is that of `smec train --workers 1 --set cpus_per_worker=THREADS` on the same rows, bit for bit (CPU).
    Nothing is stored; an interrupted training begins anew. `pipelines.train.fit` takes the same and trains on Ray.

    Args:
        corpus: documents: (N, D) numbers (numpy, torch, lists), whose ids are row numbers; or a table with columns `id`
            and `embedding` (Arrow, pandas, polars, `datasets.Dataset`, `{"id": ids, "embedding": vectors}`). Or a whole
            dataset: its folder or URI (`s3://`, `hf://datasets/`), or an open one; then without `queries` and `qrels`.
        queries: queries, in the same forms; may be omitted without `qrels`.
        qrels: judgements: a table with columns `query_id`, `doc_id` and `score`; (query_id, doc_id) or (query_id,
            doc_id, score) each; `{query_id: {doc_id: score}}` or `{query_id: [doc_id]}`. All are learnt from, a part
            to choose by; or give them by split: `{"train": ..., "dev": ..., "test": ...}`. Without, 100 queries or
            more learn to find what the full vectors find, and with fewer each document keeps its nearest neighbours.
        dims: target dims, each a usable prefix of the vector; D itself is added.
        preset: settings under the others: "fast" (a closed form, without training) or "paper".
        base: model, or its folder or URI, to which smaller dims are added.
        warm_start: model, or its folder or URI, whose weights the training starts at.
        columns: names of columns that have others: `{"id": "sku"}`.
        threads: of torch; another number changes the last bits of a model.
        device: "cpu", "cuda", ...; default: a GPU where there is one.
        memory_budget: GiB for the vectors that a training holds; a sample of documents is taken that fits.
            `math.inf` is no limit.
        progress: show a bar, on a terminal or in a notebook. Lines of progress go to the logger `smec_core`.
        settings: of the method, see `smec_core.TrainConfig`: `epochs=5`, `seed=1`.

    Returns:
        The model. `evaluation` is what it reaches on test, else on dev, else on nearest documents.

    Raises:
        InputError: bad settings or data, with the key, or the table, row and column.

    Example:
        >>> model = fit(corpus, queries, qrels, dims=[16, 8], progress=False)
        >>> model.encode(corpus, dim=8).shape
        (300, 8)
        >>> model.evaluate(corpus, queries, qrels).dims
        (32, 16, 8)
    """
    config = method_of(dims, preset, settings)
    dataset = dataset_of(corpus, queries, qrels, exclude_self=config.exclude_self, columns=columns)
    if dataset.unsupervised:
        log.info(dataset.unsupervised)
    parents = Parents.of(base, warm_start, dataset.dim)
    return fit_on(dataset, config, parents, threads, device, memory_budget, progress)


def method_of(dims: Sequence[int] | int | str, preset: str | None, settings: Mapping[str, Any]) -> TrainConfig:
    """Settings of the method as Python gives them.

    Raises:
        InputError: an unknown preset or key, or a value that does not fit.
    """
    if "dims" in settings:
        # they would be trained, and others handed out
        raise InputError("settings: dims are no setting here; give them as arguments (dims, n_components) only")
    if preset is not None and preset not in PRESETS:
        raise InputError(f"preset: {preset} is unknown; known: {', '.join(PRESETS)}")
    layers = [("the preset", PRESETS[preset] if preset else {}), ("fit", {"dims": plain_dims(dims), **settings})]
    return merged(TrainConfig, layers, lambda key: f"give {key}=")


def plain_dims(dims: Any) -> Any:
    """Dims out of an array, a range or numbers of numpy, too."""
    if isinstance(dims, np.integer | int | str):
        return dims if isinstance(dims, str) else int(dims)
    try:
        return tuple(int(dim) if isinstance(dim, np.integer) else dim for dim in dims)
    except TypeError:
        return dims


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device: {device} cannot be used ({str(error).splitlines()[0]}); give cpu or cuda") from error
    return torch.device(device)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Trains with so many threads, float32 and gradients, whatever the caller has set; then all is as it was."""
    if not isinstance(count, int | np.integer) or count < 1:
        raise InputError(f"threads: is {count!r}; give a number of at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(int(count))
    try:
        with (
            threadpool_limits(int(count), user_api="blas"),
            float32(),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            yield
    finally:
        torch.set_num_threads(before)


def fit_on(
    dataset: Dataset,
    config: TrainConfig,
    parents: Parents = NO_PARENTS,
    threads: int = 1,
    device: str | torch.device | None = None,
    memory_budget: float = MEMORY_BUDGET,
    progress: bool = True,
    is_evaluated: bool = True,
) -> Model:
    """Trains on an open dataset; see `fit`. Where it is not evaluated, a pass over the corpus less is made."""
    with _threads(threads):
        return _fit(dataset, config, parents, _device(device), memory_budget, progress, is_evaluated)


def _fit(
    dataset: Dataset,
    config: TrainConfig,
    parents: Parents,
    device: torch.device,
    memory_budget: float,
    progress: bool,
    is_evaluated: bool,
) -> Model:
    warm = parents.warm_start
    # before anything is read
    plan_training(shape_unread(dataset, config), config, parents.base_stages, warm)
    if not isinstance(memory_budget, int | float | np.number) or not memory_budget > 0:
        raise InputError(f"memory_budget: is {memory_budget!r}; give GiB above 0, as a number")
    wanted = WantedRows.of(dataset, config, memory_budget, is_small(dataset.queries), log.warning)
    scanned = wanted.read(scan_table, log.info)
    data = scanned.load(Node(device=device))
    plan = plan_training(data.shape(config), config, parents.base_stages, warm)
    stages = [(stage.pass_name, stage.dim, stage.rhythm.most_steps) for stage in plan]
    with StepBar(stages, progress) as bar:
        trained = train(data, config, bar, Hooks(say=log.info), parents.base_stages, warm)
    told = {"used": scanned.used(config, is_warm=warm is not None)}
    return finished_model(trained, dataset, scanned, config, parents, told, log.info, is_evaluated=is_evaluated)
