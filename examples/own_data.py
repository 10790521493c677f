# resrepro train -m --extension examples/own_data.py data=stripes recipe=digits model=plain,residual depth=8,20
"""A data set that is made of arrays: is a stripe upright, level, or aslant?"""

import numpy as np

import resrepro
from resrepro.configuration.schema import Data


@resrepro.dataset("stripes")
def stripes(data: Data) -> resrepro.Dataset:
    """1,200 images of 8x8 grey pixels in three classes; the same ones whenever it is called."""
    chance = np.random.default_rng(0)
    labels = np.arange(1200) % 3
    row, column = np.mgrid[:8, :8]
    along = np.stack([column, row, row + column])[labels]
    phase = chance.integers(0, 4, (1200, 1, 1))
    images = 160 * ((along + phase) % 4 < 2) + chance.integers(0, 96, (1200, 8, 8))
    images = images.astype(np.uint8)[:, np.newaxis]  # (N, channels, H, W)
    return resrepro.Dataset(images[:900], labels[:900], images[900:], labels[900:], classes=3)
