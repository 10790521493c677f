"""Decoded data sets on disk: made once, checked, and mapped into every process that trains."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resrepro.data import Dataset, digest_of
from resrepro.files import one_at_a_time

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def load_or_prepare(folder: Path, prepare: Callable[[], tuple[Arrays, int]]) -> Dataset:
    """Maps the data set prepared in `folder`, or prepares it there first.

    Processes that start together prepare it once: the others wait.

    Args:
        folder: where the arrays lie; appears whole or not at all.
        prepare: returns the arrays in the order of `ARRAYS` and the number of classes.
    """
    dataset = _load(folder)
    if dataset is None:
        lock = folder.with_name(f"{folder.name}.lock")
        with one_at_a_time(lock, f"another process is preparing {folder.name}; waiting for it"):
            dataset = _load(folder)
            if dataset is None:
                _store(folder, *prepare())
                dataset = _load(folder)
    if dataset is None:
        raise OSError(f"{folder} does not read back as it was written; is the disk failing?")
    return dataset


def _load(folder: Path) -> Dataset | None:
    """The prepared data set; None where there is none, or it was damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        # Copy-on-write: torch wants writable memory, and untouched pages stay shared.
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in ARRAYS}
        if digest_of(*arrays.values()) != meta["digest"]:
            return None
        return Dataset(**arrays, classes=meta["classes"], digest=meta["digest"])
    except Exception:  # numpy raises anything for a damaged file
        return None


def _store(folder: Path, arrays: Arrays, classes: int) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had this number
    try:
        temporary.mkdir(parents=True)
        for name, array in zip(ARRAYS, arrays, strict=True):
            np.save(temporary / f"{name}.npy", array)
        meta = {"classes": classes, "digest": digest_of(*arrays)}
        (temporary / "meta.json").write_text(json.dumps(meta))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
