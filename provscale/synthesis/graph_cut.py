"""Labels z in {0, 1/2, 1} of a grid's cells that minimise

    sum_p  unary_p(z_p)  +  sum_pq  w_pq (z_p - z_q)^2,        w_pq >= 0, over horizontal and vertical neighbours.

The cost is convex in z_p - z_q, so the minimum is a minimum cut (Ishikawa, 2003): with i = 2 z, cell p is two nodes
b_1 >= b_2, b_k = [i_p >= k] = "on the source's side", and

    (i_p - i_q)^2 = i_p (2 - i_q) + i_q (2 - i_p) + (i_p^2 - 2 i_p) + (i_q^2 - 2 i_q)

of which the products count pairs of one node of p and one of q on different sides, an edge each way between all of
them, and the rest is -1 for the label 1/2.

B grids, n x m cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor

from provscale.errors import UserError

Cut = Callable[[Tensor, Tensor, Tensor], Tensor]
RESOLUTION = 2**20
"""Capacities are integers; the largest cost of a grid becomes this number."""


def exact_cut(unary: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """The minimum, up to the rounding of costs to `RESOLUTION` steps. All grids are one graph, whose parts never meet.

    Args:
        unary: [B, n, m, 3] costs of z = 0, 1/2, 1.
        right, down: [B, n, m - 1] and [B, n - 1, m], w of neighbours.

    Returns:
        z float32 [B, n, m].
    """
    costs = unary.double().numpy().copy()
    count = costs[..., 0].size
    nodes = np.arange(2 * count).reshape(*costs.shape[:3], 2)
    source, sink = np.array(2 * count), np.array(2 * count + 1)
    weights = [tensor.double().numpy() / 4 for tensor in (right, down)]  # of (i - j)^2
    places = (np.s_[:, :, :-1], np.s_[:, :, 1:]), (np.s_[:, :-1], np.s_[:, 1:])
    for weight, (first, second) in zip(weights, places, strict=True):
        costs[first][..., 1] -= weight
        costs[second][..., 1] -= weight
    costs -= costs.min(axis=3, keepdims=True)
    # Grid by grid, so that a cut does not depend on who else is cut.
    scale = RESOLUTION / np.max(
        [part.max(axis=(1, 2), initial=1e-30) for part in (costs.max(axis=3), *weights)], axis=0
    )
    # z = 0 cuts the edge from the source, z = 1 that to the sink; b_2 without b_1 costs more than anything.
    edges = [
        (source, nodes[..., 0], costs[..., 0]),
        (nodes[..., 0], nodes[..., 1], costs[..., 1]),
        (nodes[..., 1], sink, costs[..., 2]),
        (nodes[..., 1], nodes[..., 0], np.full(nodes.shape[:3], 16.0 * RESOLUTION) / scale[:, None, None]),
    ]
    for weight, (first, second) in zip(weights, places, strict=True):
        for k, other in itertools.product(range(2), repeat=2):
            edges.append((nodes[first][..., k], nodes[second][..., other], weight))
            edges.append((nodes[second][..., other], nodes[first][..., k], weight))
    rows, columns, capacities = [], [], []
    for tail, head, cost in edges:
        rows.append(np.broadcast_to(tail, cost.shape).ravel())
        columns.append(np.broadcast_to(head, cost.shape).ravel())
        capacities.append(np.rint(cost * scale[:, None, None]).ravel())
    entries = np.concatenate(capacities).astype(np.int32), (np.concatenate(rows), np.concatenate(columns))
    graph = coo_array(entries, shape=(2 * count + 2, 2 * count + 2)).tocsr()
    rest = graph - maximum_flow(graph, int(source), int(sink)).flow
    rest.eliminate_zeros()
    reached = np.zeros(2 * count + 2, dtype=bool)
    reached[breadth_first_order(rest, int(source), return_predecessors=False)] = True
    return torch.from_numpy(reached[nodes].sum(axis=3) / 2).float()


def swap_cut(unary: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """The same by gco-wrapper's alpha-beta swaps, grid by grid, which may end above the minimum."""
    import gco

    # Integers throughout: it would scale floats by itself, and end the process where the result is too large.
    levels = ((np.arange(3)[:, None] - np.arange(3)[None]) ** 2).astype(np.int32)
    found = []
    for costs, horizontal, vertical in zip(unary.numpy(), right.numpy() / 4, down.numpy() / 4, strict=True):
        costs = costs - costs.min()
        scale = RESOLUTION / max(part.max(initial=1e-30) for part in (costs, horizontal, vertical))
        integers = (np.rint(part * scale).astype(np.int32) for part in (costs, vertical, horizontal))
        labels = gco.cut_grid_graph(next(integers), levels, *integers, algorithm="swap")
        found.append(labels.reshape(costs.shape[:2]) / 2)
    return torch.from_numpy(np.stack(found)).float()


def swap_solver() -> Cut:
    """Raises UserError when gco-wrapper is not installed."""
    try:
        import gco  # noqa: F401
    except ImportError:
        raise UserError(
            "synthesis.options.solver: swap needs the package gco-wrapper, which is not installed; run: pip install "
            "'provscale[puzzlemix]', or use exact"
        ) from None
    return swap_cut


SOLVERS: dict[str, Callable[[], Cut]] = {"exact": lambda: exact_cut, "swap": swap_solver}
