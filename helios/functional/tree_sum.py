"""A sum over pieces whose bits depend on nothing but the pieces.

Floating-point addition is not associative, so a sum is fixed only together with its order. Here it
is a pairwise tree over the index of the leaves: a node is the sum of its left and its right child,
and the last node of a level with an odd number of nodes goes up unchanged. A process that holds an
aligned block of ``2**l`` leaves computes one node of the tree by itself, so any number of processes
with such blocks get the same bits once their nodes are added in the order of the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optree
import torch

from helios.functional.tree import flatten, unflatten


class TreeSum:
    """Adds trees of tensors in the order of their index, in the fixed pairwise order.

    It works as a binary counter: a node waits until its sibling is there, so at most
    ``log2(n) + 1`` of them are alive after n leaves.

    A leaf that has nothing to add is a leaf of zeros: to leave it out would keep the sign of a
    ``-0.0`` that it is added to.

    Example:
        >>> sums = TreeSum()
        >>> for value in (1.0, 2.0, 3.0):
        ...     sums.add({"w": torch.tensor([value])})
        >>> sums.total()
        {'w': tensor([6.])}

    Law:
        The bits are those of the recursive definition, and on ranks those of one process, for any
        number of ranks that `check_pieces` allows (``property_tests/test_tree_sum.py``).
    """

    def __init__(self) -> None:
        self._nodes: list[_Node] = []  # of falling height, as the digits of a binary number
        self._structure: optree.PyTreeSpec | None = None

    @property
    def alive(self) -> int:
        """The number of nodes that are kept now."""
        return len(self._nodes)

    def add(self, leaf: Any, *, donate: bool = False) -> None:
        """Add the next leaf.

        Args:
            leaf: a tree of tensors, of the same structure, shapes and dtypes every time.
            donate: whether its tensors may be overwritten; they must then share no storage.

        Raises:
            ValueError: if its structure is not that of the leaves before it.
        """
        tensors, structure = flatten(leaf)
        if self._structure is None:
            self._structure = structure
        elif structure != self._structure:
            raise ValueError(
                f"leaf: received a tree of structure {structure}; expected {self._structure}, as "
                "the leaves before it have: what has nothing to add is zeros"
            )
        node = _Node(0, tensors, donate)
        while self._nodes and self._nodes[-1].height == node.height:
            node = self._nodes.pop().plus(node)
        self._nodes.append(node)

    def total(self) -> Any:
        """Return the sum of the leaves so far, and begin anew.

        Raises:
            ValueError: if there was no leaf.
        """
        if self._structure is None:
            raise ValueError("total: received no leaf; expected at least one call of add() before")
        node = self._nodes.pop()
        while self._nodes:
            node = self._nodes.pop().plus(node)
        structure, self._structure = self._structure, None
        return unflatten(structure, node.tensors)


class _Node:
    """One node of the tree: the sum of ``2**height`` leaves, or of those that are left."""

    def __init__(self, height: int, tensors: list[torch.Tensor], own: bool) -> None:
        self.height = height
        self.tensors = tensors
        self._own = own

    def plus(self, right: _Node) -> _Node:
        """Return the parent, in the storage of a child that is nobody else's, if there is one."""
        height = self.height + 1
        if not self.tensors:
            return _Node(height, [], True)
        if self._own:
            torch._foreach_add_(self.tensors, right.tensors)
            return _Node(height, self.tensors, True)
        return _Node(height, list(torch._foreach_add(self.tensors, right.tensors)), True)


def combine(roots: Sequence[torch.Tensor]) -> torch.Tensor:
    """Finish the tree over the nodes of the ranks.

    Args:
        roots: the node of each rank, in the order of the ranks; they keep their bits.

    Returns:
        The total. With one rank this is its node itself.

    Raises:
        ValueError: if there is none.
    """
    sums = TreeSum()
    for root in roots:
        sums.add(root)
    total: torch.Tensor = sums.total()
    return total


def check_pieces(pieces: int, world_size: int) -> None:
    """Raise unless every rank's pieces are a node of the tree over all of them.

    That takes one rank, or a power of two of pieces on each.

    Args:
        pieces: pieces of a micro-batch, over all ranks.
        world_size: number of ranks.

    Raises:
        ValueError: if they are not, with the numbers of ranks that are possible.

    Example:
        >>> check_pieces(12, 3)
    """
    possible = [w for w in range(1, pieces + 1) if _is_possible(pieces, w)]
    if world_size not in possible:
        raise ValueError(
            f"pieces: received {pieces} for {world_size} ranks; expected a number of ranks of "
            f"{possible} for {pieces} pieces, so that each rank has 1, 2, 4, 8, ... of them and "
            "the sum is the same on any number of ranks"
        )


def _is_possible(pieces: int, world_size: int) -> bool:
    each, rest = divmod(pieces, world_size)
    return world_size == 1 or (rest == 0 and each & (each - 1) == 0)
