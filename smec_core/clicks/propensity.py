"""How likely users look at a rank: given as a power law, or estimated from a log that shows documents at several ranks.

Users follow the position-based model: a document is clicked where it is looked at, with a probability p_k that depends
on its rank k alone, and is found relevant, with one that depends on query and document alone.

Shapes: E entries (pair and rank), P pairs of query and document, K ranks.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MOST_ERROR = 0.2
"""Standard error of log p_k above which an estimate is not used."""
STEPS, CLOSE = 5000, 1e-7


class Propensities(NamedTuple):
    """Probabilities that a rank is looked at, over that of the rank which is looked at most.

    Attributes:
        source: where they are from, for people.
        p_K: of rank k at place k - 1.
        error_K: standard errors of log p_k, over the rank with most clicks; NaN where p_k was not estimated.
    """

    source: str
    p_K: np.ndarray
    error_K: np.ndarray


def power_law(eta: float, ranks: int) -> Propensities:
    """p_k = (1 / k)^eta, as in Joachims, Swaminathan and Schnabel (WSDM 2017, arXiv 1608.04468, section 6.1)."""
    p_K = _rounded(np.arange(1, ranks + 1) ** -float(eta))
    return Propensities(f"(1 / rank)^{eta:g}, as given", p_K, np.full(ranks, np.nan))


def estimate(
    pair_E: np.ndarray, rank_E: np.ndarray, clicks_E: np.ndarray, shown_E: np.ndarray, *, ranks: int = 0
) -> Propensities | None:
    """Propensities by intervention harvesting: documents that the same query showed at several ranks.

    The idea, and that no click needs to be bought by an experiment, are those of Agarwal et al. (WSDM 2019, arXiv
    1812.05161). They compare ranks two by two; here all are compared at once. Given the c_ik clicks on pair i at rank
    k, where it was shown n_ik times, the p_k maximise

        sum_ik c_ik log(n_ik p_k / sum_l n_il p_l)

    which is the likelihood of Poisson counts with mean n_ik p_k r_i, conditional on the clicks of each pair (Hausman,
    Hall and Griliches, Econometrica 1984): how relevant a pair is drops out. The mean of c_ik is n_ik p_k r_i in the
    position-based model, so the estimate is consistent there, too. It is the only maximum where ranks are linked by
    pairs, and fixed-point steps find it: p_k = sum_i c_ik / sum_i (C_i n_ik / sum_l n_il p_l), with C_i the clicks of
    pair i.

    A rank whose log p_k has a standard error above MOST_ERROR, or that no pair links with the others, follows the
    power law that fits the others best.

    Args:
        pair_E: number of the pair, of each rank that it was shown at.
        rank_E: from 1.
        clicks_E: clicks.
        shown_E: how often it was shown.
        ranks: how many are wanted at least; the entries may have fewer.

    Returns:
        For all those ranks; None where fewer than two ranks can be compared.
    """
    if not len(pair_E):
        return None
    ranks = max(ranks, int(rank_E.max()))
    pair = np.unique(pair_E, return_inverse=True)[1]
    clicks_P, ranks_P = np.bincount(pair, clicks_E), np.bincount(pair)
    keep_E = ((clicks_P > 0) & (ranks_P > 1))[pair] & (shown_E > 0)
    pair, rank = pair[keep_E], rank_E[keep_E] - 1
    clicks, shown = clicks_E[keep_E].astype(np.float64), shown_E[keep_E].astype(np.float64)
    clicks_K = np.bincount(rank, clicks, ranks)
    if (clicks_K > 0).sum() < 2:
        return None
    # a rank without a click would be 0
    keep = clicks_K[rank] > 0
    pair, rank, clicks, shown = pair[keep], rank[keep], clicks[keep], shown[keep]
    p_K = np.ones(ranks)
    for _ in range(STEPS):
        looks_P = np.bincount(pair, shown * p_K[rank])
        expected_K = np.bincount(rank, clicks_P[pair] * shown / looks_P[pair], ranks)
        new_K = np.divide(clicks_K, expected_K, out=np.ones(ranks), where=clicks_K > 0)
        new_K /= np.exp(np.average(np.log(new_K), weights=clicks_K))
        is_close = np.abs(np.log(new_K / p_K))[clicks_K > 0].max() < CLOSE
        p_K = new_K
        if is_close:
            break
    error_K = _errors(pair, rank, clicks_P, shown * p_K[rank], clicks_K)
    known_K = error_K <= MOST_ERROR
    if known_K.sum() < 2:
        return None
    return _filled(p_K, error_K, known_K, clicks_K)


def _errors(
    pair: np.ndarray, rank: np.ndarray, clicks_P: np.ndarray, looks: np.ndarray, clicks_K: np.ndarray
) -> np.ndarray:
    """Standard errors (K) of log p_k over that of the rank with most clicks; infinite where no pair links the two.

    By the inverse of the information, whose elements are sum_i C_i (s_ik [k = l] - s_ik s_il), with s_ik the share of
    the looks at pair i that was at rank k.
    """
    ranks = len(clicks_K)
    share = looks / np.bincount(pair, looks)[pair]
    weighted = coo_array((np.sqrt(clicks_P[pair]) * share, (pair, rank)), shape=(len(clicks_P), ranks)).tocsr()
    information_KK = np.diag(np.bincount(rank, clicks_P[pair] * share, ranks)) - (weighted.T @ weighted).toarray()
    label_K = connected_components(np.abs(information_KK) > CLOSE, directed=False)[1]
    most = int(clicks_K.argmax())
    linked = np.flatnonzero(label_K == label_K[most])
    covariance = np.linalg.pinv(information_KK[np.ix_(linked, linked)], hermitian=True)
    place = int(np.searchsorted(linked, most))
    variance = np.diag(covariance) + covariance[place, place] - 2 * covariance[place]
    error_K = np.full(ranks, np.inf)
    error_K[linked] = np.sqrt(np.maximum(variance, 0))
    return error_K


def _filled(p_K: np.ndarray, error_K: np.ndarray, known_K: np.ndarray, clicks_K: np.ndarray) -> Propensities:
    """Estimates, with the power law that fits them best where there is none."""
    log_rank_K, log_p_K = np.log(np.arange(1, len(p_K) + 1)), np.log(p_K)
    weight = clicks_K[known_K]
    x, y = log_rank_K[known_K], log_p_K[known_K]
    x_mean, y_mean = np.average(x, weights=weight), np.average(y, weights=weight)
    eta = max(0.0, -np.sum(weight * (x - x_mean) * (y - y_mean)) / np.sum(weight * (x - x_mean) ** 2))
    log_p_K = np.where(known_K, log_p_K, y_mean - eta * (log_rank_K - x_mean))
    log_p_K = np.minimum(log_p_K - log_p_K[known_K].max(), 0)
    source = f"estimated for {known_K.sum()} ranks from documents shown at several"
    if not known_K.all():
        source += f", (1 / rank)^{eta:.2f} for {(~known_K).sum()} others"
    return Propensities(source, _rounded(np.exp(log_p_K)), np.where(known_K, error_K, np.nan))


def _rounded(p_K: np.ndarray) -> np.ndarray:
    # so that the last bits of an exponential, which differ between machines, do not count
    return np.round(p_K, 6)
