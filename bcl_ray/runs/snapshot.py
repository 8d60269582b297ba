"""Copies of a run's state in the host's memory, to be written while training goes on."""

import copy
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from bcl_ray.runs.checkpoint import State


class Snapshots:
    """Copies states into memory that is allocated by the first copy and used again by each.

    A copy is therefore valid until the next one is taken. The memory of tensors on a GPU is
    page-locked, from which a copy takes a fraction of the time.
    """

    def __init__(self) -> None:
        self._memory: dict[Hashable, Tensor] = {}

    def take(self, state: State) -> State:
        """A copy on the CPU, bit for bit; complete when this returns."""
        content = {name: getattr(state, name) for name in State.__dataclass_fields__}
        copied = self._copy(content, ())
        if state.sums.is_cuda:  # copies from a GPU have only been queued
            torch.cuda.synchronize(state.sums.device)
        return State(**copied)

    def _copy(self, value: Any, path: tuple[Hashable, ...]) -> Any:
        """A copy of a value of a state, which is at this path of keys and positions."""
        if isinstance(value, Tensor):
            return self._memory_of(value, path).copy_(value, non_blocking=True)
        if isinstance(value, dict):
            same_kind = copy.copy(value)  # torch's state dicts have attributes
            same_kind.update({key: self._copy(item, (*path, key)) for key, item in value.items()})
            return same_kind
        if isinstance(value, list):
            return [self._copy(item, (*path, index)) for index, item in enumerate(value)]
        return value

    def _memory_of(self, tensor: Tensor, path: tuple[Hashable, ...]) -> Tensor:
        key = (path, tensor.shape, tensor.stride(), tensor.dtype)
        if key not in self._memory:
            pinned = tensor.is_cuda
            self._memory[key] = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        return self._memory[key]
