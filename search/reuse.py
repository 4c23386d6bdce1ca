"""What is kept of earlier work: tensors by key, within a bound on their bytes.

Of what a search computes most is never asked for again, and what is asked for twice is often asked for
many times. So the cache is a segmented LRU with a memory of what it dropped (2Q, VLDB 1994): what is new
may take a small share of the bytes, and only what was asked for again competes for the rest.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

TRIAL_SHARE = 0.1  # of the bytes: for what was asked for once
REMEMBERED = 100_000  # keys that were asked for once, about 15 MB


class ReuseCache:
    """Tensors along paths: each key of a path stands for what the path computes up to there.

    Tensors are copied in, to places that are used again: what stays for long among what comes and goes would
    leave the process's memory full of holes. They are handed out as they are, so nobody may change them, and
    they hold until the next `add`.

    Args:
        limit: bytes at most; 0 keeps nothing.

    Attributes:
        n_bytes: of the tensors held now, and of places that are free.
        peak_bytes: the most there ever were.
        hits: positions that paths were spared.
        lookups: positions that paths asked for.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.n_bytes = self.peak_bytes = self.hits = self.lookups = 0
        self._trial: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._proven: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._asked: OrderedDict[int, None] = OrderedDict()
        self._trial_bytes = 0
        self._free: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._trial) + len(self._proven)

    def longest(self, path: Sequence[Hashable]) -> tuple[int, Tensor | None]:
        """Return how many positions of a path can be skipped, and the tensor at the last of them."""
        self.lookups += len(path)
        found: tuple[int, Tensor | None] = (0, None)
        for position in range(len(path), 0, -1):  # the shortest is used last: most paths share it
            tensor = self._use(path[position - 1])
            if tensor is not None and not found[0]:
                found = position, tensor
        self.hits += found[0]
        return found

    def _use(self, key: Hashable) -> Tensor | None:
        if key in self._proven:
            self._proven.move_to_end(key)
        elif key in self._trial:
            self._proven[key] = self._trial.pop(key)
            self._trial_bytes -= self._proven[key].nbytes
        return self._proven.get(key)

    def add(self, path: Sequence[Hashable], tensors: Sequence[Tensor]) -> None:
        """Keep the tensors at the last positions of a path, those that were used least go.

        Args:
            path: keys.
            tensors: of its last len(tensors) positions, in order; none of them is held yet.
        """
        if not self.limit or not tensors:
            return
        for key, tensor in zip(reversed(path), reversed(tensors), strict=False):
            place = self._place_for(tensor)
            if place is None:
                continue
            place.copy_(tensor)
            if self._asked_before(hash(key)):
                self._proven[key] = place
            else:
                self._trial[key] = place
                self._trial_bytes += place.nbytes

    def _asked_before(self, key: int) -> bool:
        known = key in self._asked
        self._asked[key] = None
        self._asked.move_to_end(key)
        if len(self._asked) > REMEMBERED:
            self._asked.popitem(last=False)
        return known

    def _place_for(self, tensor: Tensor) -> Tensor | None:
        """Return a free place of a tensor's shape, once enough has gone; None if it is larger than all there is."""
        if tensor.nbytes > self.limit:
            return None
        while True:
            for i, place in enumerate(self._free):
                if place.shape == tensor.shape:
                    return self._free.pop(i)
            if self.n_bytes + tensor.nbytes <= self.limit:
                self.n_bytes += tensor.nbytes
                self.peak_bytes = max(self.peak_bytes, self.n_bytes)
                return torch.empty_like(tensor)
            if len(self._free) > 1:  # of other shapes
                self.n_bytes -= self._free.pop(0).nbytes
            else:
                self._drop_one()

    def _drop_one(self) -> None:
        if self._trial and (self._trial_bytes > TRIAL_SHARE * self.limit or not self._proven):
            self._free.append(self._trial.popitem(last=False)[1])
            self._trial_bytes -= self._free[-1].nbytes
        elif self._proven:
            self._free.append(self._proven.popitem(last=False)[1])
        else:
            self.n_bytes -= self._free.pop().nbytes
