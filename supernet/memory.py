"""How many bytes of tensors are alive while PyTorch code runs, found without running it.

The code runs on fake tensors, which have a shape, a type and a device, but no values and no memory. Autograd and
autocast take them for real, so what is kept for the backward pass is what the code keeps. Not seen: what an operation
allocates and frees within itself, what the allocator wastes, and what libraries hold.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Rehearsal(TorchDispatchMode):
    """Within it, tensors are fake, and their storages are counted until nobody holds them any more.

    Attributes:
        now: bytes alive of what operations have made.
        peak: the most there were at a time; `mark` begins anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> "Rehearsal":
        self._fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._fake.__exit__(*exception)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it returns; the storage of a view is known already."""
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._count(storage)
        return result

    def mark(self) -> int:
        """Let the peak be what is alive now, and return that."""
        self.peak = self.now
        return self.now

    def backward(self, loss: Tensor) -> None:
        """Go through the backward pass; in a thread of the engine's own it would not be counted."""
        with torch.autograd.set_multithreading_enabled(False):
            loss.backward()

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def n_bytes(tensors: Any) -> int:
    """Return the bytes of all tensors in nested containers; those that share a storage count once."""
    return sum({storage._cdata: storage.nbytes() for storage in _storages(tensors)}.values())


def _storages(tensors: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor)]
