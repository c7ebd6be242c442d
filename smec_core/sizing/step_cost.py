"""What a training step and a scoring on dev cost, as products and bytes; seconds by a machine's speed.

Shapes: B queries, N documents, A = B + N anchors, U distinct neighbours, P positive pairs, K neighbours of an anchor,
M memory slots, I dims the stage takes, d dims it keeps, Q dev queries, L dev documents, D input dims.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from smec_core.config import Projection
from smec_core.model.cayley import BASE_DIM
from smec_core.sizing.machine_speed import MachineSpeed

Product = tuple[float, float, float]
"""Rows, inner dim and columns of a matrix product."""

# of this code, whatever the machine: Python and torch around the products of a step
BATCH_SECONDS, CANDIDATE_SECONDS, COLLECTIVE_SECONDS = 0.5e-3, 2.0e-3, 1.0e-3
# bytes moved for each entry: of the weights by optimizer, average and gradient; of what a rotation adds to that; of a
# margin of the ranking loss; of a similarity that is searched at one prefix; of an anchor's similarity to the memory
WEIGHT_BYTES, ROTATION_BYTES, MARGIN_BYTES, SEARCH_BYTES, MEMORY_BYTES = 120.0, 200.0, 250.0, 30.0, 40.0
# LAPACK's eigenvectors in float64, as products in float32
EIGEN_PRODUCTS = 18.0
FLOAT = 4


@dataclass(frozen=True)
class StepRows:
    """Mean sizes of a global step.

    Attributes:
        queries: B.
        docs: N.
        pairs: P.
        neighbours: A times K; 0 where no memory is searched.
        items: U.
        slots: M, as far as the corpus fills them.
    """

    queries: float
    docs: float
    pairs: float
    neighbours: float = 0.0
    items: float = 0.0
    slots: float = 0.0

    @property
    def anchors(self) -> float:
        """A."""
        return self.queries + self.docs


@dataclass(frozen=True)
class StageShape:
    """What a stage trains.

    Attributes:
        d_in: I.
        dim: d.
        ahead: smaller dims that it trains, too.
        parallel: prefixes that it trains all at once instead.
        hidden_dim: width of the MLP of residual_mlp.
        is_compatible: whether queries meet the champion's documents, too.
    """

    d_in: int
    dim: int
    ahead: tuple[int, ...] = ()
    parallel: tuple[int, ...] = ()
    hidden_dim: int = 0
    is_compatible: bool = False

    def losses(self, kind: Projection) -> list[tuple[int, int]]:
        """Longest prefix, and number of prefixes, of each pass over the losses."""
        if self.parallel:
            return [(max(self.parallel), len(self.parallel))]
        found = [] if self.dim == self.d_in else [(self.dim, 1 + len(self.ahead))]
        if kind not in ("rotation", "selection") or self.is_compatible:
            found.append((self.d_in, 1))
        return found

    def asked(self, kind: Projection) -> int:
        """Outputs that a step computes."""
        is_short = kind in ("rotation", "selection") and not self.parallel and not self.is_compatible
        return self.dim if is_short else self.d_in


def inverse_products(dim: int) -> Iterator[Product]:
    """Products of `cayley.inverse_without_pivots`."""
    if dim > BASE_DIM:
        half, rest = dim // 2, dim - dim // 2
        yield from inverse_products(half)
        yield from inverse_products(rest)
        yield from [(half, half, rest), (rest, half, half), (rest, half, rest)]
        yield from [(rest, rest, half), (half, rest, rest), (half, rest, half)]


def step_products(stage: StageShape, kind: Projection, rows: StepRows, ranks: int) -> list[Product]:
    """Products of one step of a candidate on one of the ranks that share it, forward and back."""
    own, dim, asked = (rows.anchors + rows.items) / ranks, stage.d_in, stage.asked(kind)
    found: list[Product] = [(own, dim, asked)]
    if kind != "selection":
        found.append((asked, own, dim))
    if kind == "rotation":
        found += [*inverse_products(dim), (asked, dim, dim), (dim, asked, dim)]
        found += [(own, dim, dim)] if own < 2 * asked else 2 * [(asked, dim, dim)]
    if kind == "residual_mlp":
        found += 5 * [(own, dim, float(stage.hidden_dim))]
    if rows.pairs:
        for width, _ in stage.losses(kind):
            found += (5 if stage.is_compatible else 3) * [(rows.queries / ranks, width, rows.docs)]
    return found


def candidate_seconds(stage: StageShape, kind: Projection, rows: StepRows, ranks: int, speed: MachineSpeed) -> float:
    """Time of one step of a candidate, divided among `ranks`."""
    found = sum(speed.product(*product) for product in step_products(stage, kind, rows, ranks))
    per_weight = WEIGHT_BYTES + (ROTATION_BYTES if kind == "rotation" else 0)
    moved = per_weight * stage.d_in**2 + 4 * FLOAT * (rows.anchors + rows.items) / ranks * stage.d_in
    for width, prefixes in stage.losses(kind):
        moved += MARGIN_BYTES * prefixes * rows.pairs / ranks * rows.docs * (2 if stage.is_compatible else 1)
        # sparse products, forward and twice back: each reads a row of either side for every pair
        moved += 3 * 2 * FLOAT * rows.neighbours / ranks * width
    shared = 0.0 if ranks == 1 else 3 * COLLECTIVE_SECONDS + speed.moved(4 * FLOAT * stage.d_in**2)
    return CANDIDATE_SECONDS + found + speed.moved(moved) + shared


def load_seconds(rows: StepRows, input_dim: int, ranks: int, speed: MachineSpeed) -> float:
    """Time to draw a step, read its rows and search the memory, divided among `ranks`."""
    moved = 4 * FLOAT * (rows.anchors + rows.items) * input_dim
    if not rows.neighbours:
        return BATCH_SECONDS + speed.moved(moved)
    search = speed.product(rows.anchors, input_dim, rows.slots / ranks)
    moved += MEMORY_BYTES * rows.anchors * rows.slots / ranks
    shared = 0.0 if ranks == 1 else 2 * COLLECTIVE_SECONDS
    return BATCH_SECONDS + search + speed.moved(moved) + shared


def scoring_seconds(
    stage: StageShape, kind: Projection, prefixes: int, top: int, queries: int, docs: float, speed: MachineSpeed
) -> float:
    """Time to score a candidate on dev; `docs` are those of one rank.

    Args:
        stage: the stage.
        kind: its projection.
        prefixes: how many it is scored at; a rotation cannot change those of its whole block and above.
        top: the longest of them.
        queries: Q.
        docs: L.
        speed: of the machine.
    """
    found = speed.product(queries + docs, stage.d_in, min(top, stage.d_in)) + speed.product(queries, top, docs)
    if kind == "rotation":
        frozen = [*inverse_products(stage.d_in), (stage.d_in,) * 3]
        found += sum(speed.product(*product) for product in frozen)
    moved = SEARCH_BYTES * prefixes * queries * docs + 4 * FLOAT * (queries + docs) * top
    return CANDIDATE_SECONDS + found + speed.moved(moved)


def pca_seconds(rows: float, dim: int, speed: MachineSpeed) -> float:
    """Time of a PCA rotation of so many rows of a rank."""
    products = speed.product(dim, rows, dim) + EIGEN_PRODUCTS * speed.product(dim, dim, dim)
    return products + speed.moved(4 * FLOAT * rows * dim)


def through_seconds(rows: float, stage: StageShape, speed: MachineSpeed) -> float:
    """Time to pass so many rows of a rank through a trained stage."""
    return speed.product(rows, stage.d_in, stage.dim) + speed.moved(2 * FLOAT * rows * (stage.d_in + stage.dim))
