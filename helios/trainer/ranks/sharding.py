"""A model whose parameters are spread over the ranks, by torch's ``fully_shard``.

Every rank keeps some rows of each parameter, the first ranks more than the last where they do not
divide. The state of a run holds these rows as plain tensors, so that optimizers, averages and
digests need not know of it. A forward pass brings whole parameters together, module by module, and
lets go of them; it has to go through `ShardedBinding.run`.

References:
    https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from helios.errors import ModelError
from helios.functional.binding import Binding
from helios.functional.transformation import Tensors


class Rows(msgspec.Struct, frozen=True):
    """Which rows of a parameter a rank keeps.

    Args:
        shape: the shape of the whole parameter.
        start: the first row.
        count: how many rows, 0 if there are more ranks than rows.

    Example:
        >>> Rows.of_rank((5, 3), rank=1, world_size=2)
        Rows(shape=(5, 3), start=3, count=2)
        >>> Rows.of_rank((5, 3), rank=3, world_size=4).local
        (0, 3)
    """

    shape: tuple[int, ...]
    start: int
    count: int

    @classmethod
    def of_rank(cls, shape: tuple[int, ...], rank: int, world_size: int) -> Rows:
        """Return the rows of a rank, by the rule of ``torch.chunk``, which ``fully_shard`` has."""
        rows = shape[0]
        each = -(-rows // world_size)
        start = min(rank * each, rows)
        return cls(tuple(shape), start, min(each, rows - start))

    @property
    def local(self) -> tuple[int, ...]:
        """The shape of these rows."""
        return (self.count, *self.shape[1:])

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """Return a copy of these rows of a whole tensor."""
        return whole[self.start : self.start + self.count].clone()


class Root(nn.Module):
    """The module that is sharded: it runs any function of the model as its forward pass.

    A loss is a method of the model, which may use parameters of the model itself and call parts of
    it in any order; to ``fully_shard`` all of that is one forward pass of one module.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function."""
        return function(*args)


class ShardedBinding(Binding):
    """Lends a state's shards to a model that was given to ``fully_shard``.

    A state's tensor *is* the shard wherever it can be, so that an update in place is seen by the
    next forward pass. A shard with fewer rows than the largest is copied each time into a buffer
    with padding, from which ``fully_shard`` sends it.

    Args:
        module: the model.
        root: the `Root` around it, sharded.
        mesh: the ranks, in one dimension.

    Attributes:
        rows: which rows of each parameter are here, by path.
        names: the path of a parameter by each path under which it is in the model, tied ones too.
        mesh: the ranks.
    """

    def __init__(self, module: nn.Module, root: Root, mesh: DeviceMesh) -> None:
        super().__init__(module)
        sharded: Any = root
        self._root: Any = root
        self.mesh = mesh
        sharded._get_fsdp_state()._lazy_init()  # it would pad, and so replace, shards lent before
        by_parameter = {id(shard.sharded_param): shard for shard in _fsdp_params(root)}
        self._shards = {name: by_parameter[id(p)] for name, p in self.parameters.items()}
        self._buffers: dict[str, torch.Tensor] = {}
        self._copied: list[tuple[torch.Tensor, torch.Tensor]] = []
        rank, size = mesh.get_local_rank(), mesh.size()
        self.rows = {
            name: Rows.of_rank(tuple(p.shape), rank, size) for name, p in self.parameters.items()
        }
        own = {id(p): name for name, p in self.parameters.items()}
        self.names = {
            name: own[id(p)] for name, p in module.named_parameters(remove_duplicate=False)
        }
        self._reached: set[str] = set()
        self._watched: set[str] = set()

    @property
    def has_elements(self) -> bool:
        """Whether this rank keeps anything of what is trained."""
        return any(
            self.rows[name].count and parameter.requires_grad
            for name, parameter in self.parameters.items()
        )

    def lend(self, params: Tensors, buffers: Tensors) -> None:
        """Point the model at shards and buffers; see `Binding.lend`.

        Raises:
            ModelError: if they are not of this model, or not the shards of this rank.
        """
        super().lend(params, buffers)
        for tensor, buffer in self._copied:
            buffer.copy_(tensor)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that computes with the model's parameters; every rank has to.

        Args:
            function: of the model, such as its ``valid_step``. It calls the same modules in the
                same order on every rank.
            args: what it is given.
        """
        try:
            return self._root(function, *args)
        finally:
            if not torch.is_grad_enabled():
                for module in _sharded(self._root):
                    module.reshard()

    def gradients(self) -> tuple[Tensors, set[str]]:
        """Take the gradients of the last backward pass off the parameters.

        Returns:
            The sums over all ranks of this rank's rows, by path; and the paths of the parameters
            that took part on this rank.
        """
        grads = {}
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                grads[name] = _local(parameter.grad)
                parameter.grad = None
        reached, self._reached = self._reached, set()
        return grads, reached

    def watch(self) -> None:
        """Note from now on which parameters a gradient reaches; called after a forward pass."""
        for name, shard in self._shards.items():
            if name in self._watched or not hasattr(shard, "_unsharded_param"):
                continue
            self._watched.add(name)
            if shard._unsharded_param.requires_grad:
                shard._unsharded_param.register_post_accumulate_grad_hook(self._note(name))

    def whole(self, params: Tensors) -> Tensors:
        """Return whole tensors of shards, on every rank; every rank has to call it.

        Args:
            params: this rank's shards by the paths of their parameters.
        """
        whole = {}
        size = self.mesh.size()
        for name, shard in params.items():
            shape = self.rows[name].shape
            each = Rows.of_rank(shape, 0, size).count
            padded = shard.new_zeros((each, *shape[1:]))
            padded[: shard.shape[0]] = shard
            parts = [torch.empty_like(padded) for _ in range(size)]
            dist.all_gather(parts, padded, group=self.mesh.get_group())
            whole[name] = torch.cat(parts)[: shape[0]].clone()
        return whole

    def parameters_after(self, lent: Tensors, *, every: bool = False) -> Tensors:
        """Return the shards after user code that may have replaced some; see `Binding`."""
        changed = {
            name: _local(p).detach().clone()
            for name, p in (self.parameters if every else self.frozen).items()
            if _local(p) is not lent[name]
        }
        return {**lent, **changed} if changed else lent

    def _note(self, name: str) -> Callable[[torch.Tensor], None]:
        return lambda _: self._reached.add(name)

    def _copies(self) -> Tensors:
        return {name: _local(p).detach().clone() for name, p in self.parameters.items()}

    def _point(self, params: Tensors) -> None:
        copied = []
        for name, shard in self._shards.items():
            tensor, rows = params[name], self.rows[name]
            if tuple(tensor.shape) != rows.local:
                raise ModelError(
                    f"parameter {name!r}: received {list(tensor.shape)} of the state; expected "
                    f"{list(rows.local)}, the rows {rows.start} to {rows.start + rows.count} of "
                    f"{list(rows.shape)} that this rank keeps. Make the state with "
                    "helios.init_state() after the model is sharded, on the same number of ranks"
                )
            shard.sharded_param._local_tensor = tensor
            if tensor.shape == shard.padded_sharded_param_size and tensor.is_contiguous():
                shard._sharded_param_data = tensor.view(-1)
                self._buffers.pop(name, None)
                continue
            if name not in self._buffers:
                self._buffers[name] = tensor.new_zeros(shard.padded_sharded_param_size)
            padded = self._buffers[name]
            shard._sharded_param_data = padded.view(-1)
            if rows.count:
                copied.append((tensor, padded[: rows.count]))
        self._copied = copied

    def _put_by(self) -> Callable[[], None]:
        held = {name: (_local(p), p.grad) for name, p in self.parameters.items()}
        for parameter in self.parameters.values():
            parameter.grad = None

        def give_back() -> None:
            self._point({name: tensor for name, (tensor, _) in held.items()})
            for name, parameter in self.parameters.items():
                parameter.grad = held[name][1]

        return give_back


def _local(tensor: Any) -> torch.Tensor:
    local: torch.Tensor = tensor._local_tensor
    return local


def _sharded(root: nn.Module) -> Iterator[Any]:
    return (module for module in root.modules() if isinstance(module, FSDPModule))


def _fsdp_params(root: nn.Module) -> Iterator[Any]:
    for module in _sharded(root):
        for group in module._get_fsdp_state()._fsdp_param_groups:
            yield from group.fsdp_params
