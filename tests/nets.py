"""The paper's blocks by their shortcuts' option; None for a plain net."""

from functools import partial
from typing import Any

from resrepro.networks.blocks import PlainBlock, ResidualBlock

BLOCKS: dict[str | None, Any] = {
    None: PlainBlock,
    "A": partial(ResidualBlock, shortcut="A"),
    "B": partial(ResidualBlock, shortcut="B"),
}
