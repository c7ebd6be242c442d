"""SMEC as a transformer of scikit-learn.

Shapes: N rows, D features, d components.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from smec_core.data.forms import Qrels, Vectors, dataset_of
from smec_core.errors import InputError
from smec_core.model.model import Model
from smec_core.training.fit import fit_on, method_of, plain_dims

_SEEDS = 2**31


class SmecEmbedding(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Compresses embeddings to unit vectors of fewer dims, compared by cosine.

    X is the corpus, an embedding a row, none of them zero. Without judgements each document keeps its nearest
    neighbours, or, where 100 `queries` or more come without `qrels`, queries find what they find by all features; with
    both, queries find what is judged relevant. Nothing is learnt from y: classes are no judgements, and all pairs of a
    class would make it one point.

    Args:
        n_components: dims of what `transform` gives; None: a quarter of the features.
        dims: further prefixes that are to be usable of the one vector, as for `model_.encode`: numbers, one number,
            or "12,6".
        preset: "fast" (a closed form, without training) or "paper".
        settings: further settings of the method, see `smec_core.TrainConfig`: `{"epochs": 5}`.
        random_state: seed, or a generator of one.
        threads: of torch; another number changes the last bits.

    Attributes:
        model_: the `smec_core.Model`, which has not been evaluated.
        n_features_in_: D.
        feature_names_in_: names of the features, where X has some.

    Example:
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import Normalizer
        >>> pipeline = make_pipeline(Normalizer(), SmecEmbedding(n_components=8, preset="fast"))
        >>> pipeline.fit_transform(corpus).shape
        (300, 8)
        >>> judged = SmecEmbedding(n_components=8, settings={"epochs": 2})
        >>> judged.fit(corpus, queries=queries, qrels=qrels).transform(queries).shape
        (100, 8)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        dims: Sequence[int] | int | str = (),
        preset: str | None = None,
        settings: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        threads: int = 1,
    ) -> None:
        self.n_components = n_components
        self.dims = dims
        self.preset = preset
        self.settings = settings
        self.random_state = random_state
        self.threads = threads

    def fit(self, X: Any, y: Any = None, *, queries: Vectors = None, qrels: Qrels = None) -> Self:
        """Learns from a corpus, and from what of it is judged relevant to queries.

        In a pipeline, `queries` reach this step as they are given, unless the pipeline is told to transform them, too:
        `Pipeline(..., transform_input=["queries"])`.

        Args:
            X: (N, D) embeddings of documents.
            y: nothing is learnt from it.
            queries: (Q, D) embeddings of queries.
            qrels: judgements: (query row, row of X) or (query row, row of X, score) each, or another form that
                `smec_core.fit` takes.

        Raises:
            ValueError: bad rows, settings or judgements.
        """
        x_ND = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        features = x_ND.shape[1]
        wanted = max(1, features // 4) if self.n_components is None else self.n_components
        if not isinstance(wanted, int | np.integer):
            # among the dims of a training a float that is whole would do, but it slices no vectors
            raise ValueError(f"dims: n_components is {wanted!r}; it must be a whole number")
        self._n_features_out = int(wanted)
        settings = {"seed": _seed(self.random_state), **(self.settings or {})}
        try:
            config = method_of(self._all_dims(), self.preset, settings)
            if hasattr(queries, "to_numpy") and "embedding" not in getattr(queries, "columns", ("embedding",)):
                # a frame of features, as X may be
                queries = check_array(queries, dtype=[np.float64, np.float32], input_name="queries")
            dataset = dataset_of(x_ND, queries, qrels, exclude_self=config.exclude_self)
            self.model_: Model = fit_on(dataset, config, threads=self.threads, progress=False, is_evaluated=False)
        except InputError as error:
            # as scikit-learn expects it
            raise ValueError(str(error)) from error
        return self

    def _all_dims(self) -> tuple[int, ...]:
        """Dims of the training.

        Raises:
            InputError: `dims` are no dims.
        """
        given = plain_dims(self.dims)
        if isinstance(given, tuple) and not given:
            return (self._n_features_out,)
        further = method_of(given, None, {}).dims
        # what is asked for anyway may be named again
        return (self._n_features_out, *(dim for dim in further if dim != self._n_features_out))

    def transform(self, X: Any) -> np.ndarray:
        """Compresses embeddings (N, D), documents and queries alike, to unit vectors (N, d), float32."""
        check_is_fitted(self, "model_")
        x_ND = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self.model_.encode(x_ND, dim=self._n_features_out)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _seed(random_state: int | np.random.RandomState | None) -> int:
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(_SEEDS))
