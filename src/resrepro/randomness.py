"""Everything random as a pure function of (seed, purpose, index).

Philox is a counter-based generator: any of its streams can be entered anywhere without having
drawn what came before, so a resumed run needs no generator state, and the same iteration is the
same batch on any machine. Only raw integers and the normal sampler are used; numpy guarantees
the former to be the same in every release.
"""

from typing import Literal

import numpy as np

Purpose = Literal["weights", "order", "augmentation", "split"]
_KEYS: dict[Purpose, int] = {"weights": 0, "order": 1, "augmentation": 2, "split": 3}


def _stream(seed: int, purpose: Purpose, index: int) -> np.random.Philox:
    # The counter's lowest word counts the draws of a stream; the next one numbers the streams.
    return np.random.Philox(key=[seed, _KEYS[purpose]], counter=[0, index, 0, 0])


def generator(seed: int, purpose: Purpose, index: int = 0) -> np.random.Generator:
    """A numpy generator at the start of stream `index` of a purpose."""
    return np.random.Generator(_stream(seed, purpose, index))


def integers(seed: int, purpose: Purpose, index: int, count: int) -> np.ndarray:
    """`count` random 64-bit integers (uint64) of stream `index` of a purpose."""
    raw = _stream(seed, purpose, index).random_raw(count)
    return np.asarray(raw, dtype=np.uint64)


def permutation(seed: int, purpose: Purpose, index: int, count: int) -> np.ndarray:
    """A random order (int64) of 0 … count-1: stream `index` of a purpose, sorted."""
    return np.argsort(integers(seed, purpose, index, count), kind="stable")
