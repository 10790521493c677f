"""Reproduces the degradation study of the ResNet paper, and asks its question of other nets.

From Python: `resrepro.open` reads what there is, `resrepro.train` trains a run; a user's own code
registers by `resrepro.family` and `resrepro.dataset`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resrepro.data import Dataset
    from resrepro.experiment import open, train  # noqa: A004 (resrepro.open is what it is called)
    from resrepro.extension import dataset, family, use

__version__ = "0.1.0"
__all__ = ["Dataset", "dataset", "family", "open", "train", "use"]

_PLACES = {
    "Dataset": "resrepro.data",
    "dataset": "resrepro.extension",
    "family": "resrepro.extension",
    "open": "resrepro.experiment",
    "train": "resrepro.experiment",
    "use": "resrepro.extension",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: `resrepro --help` needs no PyTorch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'resrepro' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
