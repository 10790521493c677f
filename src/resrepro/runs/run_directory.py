"""The run directory: the one corridor between training and everything that looks at results.

This module alone knows the names and formats of a run's files. Every file is written whole and
checked when it is read: config.yaml and checkpoint.pt against the run's hash, summary.json
against its own digest, metrics.csv against the summary, and the checkpoint, which holds the
metrics too, against its digest.
"""

import csv
import hashlib
import io
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from filelock import Timeout
from omegaconf import OmegaConf

from resrepro.configuration.schema import Config, config_hash, differences, from_mapping
from resrepro.errors import ConfigError, Locked, ResreproError, one_line
from resrepro.files import acquire, cannot_be_written, write_atomically

CHECKPOINT_FORMAT = 2  # of format 1 is what knew of SGD alone; it is still read
PLAN = "study.json"  # in an experiment's folder
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is
LOCK_SECONDS = 1.0  # `is_locked` of another process holds the lock for an instant


@dataclass(frozen=True)
class Row:
    """One evaluation. Errors in percent; `train_*` over the batches since the row before."""

    iteration: int
    epoch: float
    learning_rate: float
    train_loss: float
    train_error: float
    test_loss: float
    test_error: float
    seconds: float


COLUMNS = tuple(field.name for field in fields(Row))


class _OfAnotherRun(ValueError):  # noqa: N818 (it is)
    """A checkpoint whose configuration is not the run's."""


class RunDirectory:
    """The files of one run: config.yaml, metrics.csv, summary.json, checkpoints, and the rest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._config: Config | None = None
        self._newest_is_damaged = False

    @property
    def name(self) -> str:
        """The run's name, such as plain-56-s0."""
        return self.path.name

    def exists(self) -> bool:
        """Whether there is a run here."""
        return self._config_file.is_file()

    # config.yaml

    @property
    def _config_file(self) -> Path:
        return self.path / "config.yaml"

    @contextmanager
    def opened(self, config: Config) -> Iterator[None]:
        """Makes the directory, or checks that it holds the same run, and holds its lock.

        Raises:
            ConfigError: it holds another configuration.
            Locked: another process has it; the message names it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self._is_worth_keeping():
            self._refuse_another(config)  # of which not even the lock is touched
        with ExitStack() as stack:
            try:
                stack.enter_context(self.locked())
            except Locked:
                self._refuse_another(config)
                raise
            self.open(config)
            yield

    def open(self, config: Config) -> None:
        """Makes the directory, or checks that it holds the same run. To be done under its lock.

        Where the run that it holds has no checkpoint and no row, this one takes its place: there
        is nothing to protect, and what kept that one from training may just have been mended.

        Raises:
            ConfigError: it holds another configuration.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._is_worth_keeping():
            self._make_way(config)
        self._refuse_another(config)
        if not self.exists() or self.config().name != config.name:
            self._write_config(config)

    def _is_worth_keeping(self) -> bool:
        return self.has_checkpoint() or self._has_rows()

    def _refuse_another(self, config: Config) -> None:
        there_is = ""
        if not self.exists():
            if self._has_anothers_checkpoint(config):
                there_is = "the checkpoint of another run, whose config.yaml is lost"
        elif differ := differences(self.config(), config):
            values = [f"{key} {there}, here {here}" for key, (there, here) in differ.items()]
            there_is = f"another configuration ({'; '.join(values)})"
        if there_is:
            raise ConfigError(
                f"{self.path} holds {there_is}; give this run a place of its own with tag=WORD or "
                "experiment=NAME"
            )

    def _make_way(self, config: Config) -> None:
        """Puts a configuration in the place of one that never trained."""
        if self.exists() and differences(self.config(), config):
            for file in (self._summary_file, self._metrics_file, self._responses_file):
                file.unlink(missing_ok=True)
            self.log("never trained; another configuration takes its place")
            self._write_config(config)

    def _write_config(self, config: Config) -> None:
        text = OmegaConf.to_yaml(OmegaConf.create(config.to_dict()))
        write_atomically(self._config_file, text.encode())
        self._config = config

    def config(self) -> Config:
        """The run's configuration.

        Raises:
            ConfigError: there is none.
            ResreproError: it cannot be read.
        """
        if self._config is None:
            try:
                content = yaml.load(self._config_file.read_bytes(), SAFE_LOADER)  # noqa: S506
                if not isinstance(content, dict):
                    raise ValueError("it holds no configuration")
                self._config = from_mapping(content, is_used=False)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise ConfigError(
                    f"{self.path} is no run's directory: it has no config.yaml; one is called "
                    "OUTPUTS/EXPERIMENT/NAME, such as outputs/digits/plain-20-s0"
                ) from error
            except (OSError, yaml.YAMLError, ConfigError, TypeError, ValueError) as error:
                raise ResreproError(
                    f"{self._config_file} cannot be read: {one_line(error)}"
                ) from error
        return self._config

    def data_digest(self) -> str | None:
        """Of the data that the run was trained on; None where the files do not tell."""
        try:
            return (self.summary() or {}).get("data_digest") if self.exists() else None
        except ResreproError:
            return None

    def check_data(self, trained_on: str, now: str) -> None:
        """Compares the digest of the data that the run was trained on with that of today's.

        Raises:
            ResreproError: they differ.
        """
        if trained_on != now:
            raise ResreproError(
                f"{self.path} was trained on other data than there is now (SHA-256 "
                f"{trained_on[:12]}…, now {now[:12]}…); give this run a place of its own with "
                "tag=WORD or experiment=NAME"
            )

    # metrics.csv

    @property
    def _metrics_file(self) -> Path:
        return self.path / "metrics.csv"

    def write_metrics(self, rows: Sequence[Row]) -> None:
        """Replaces metrics.csv."""
        write_atomically(self._metrics_file, _csv(rows))

    def metrics(self) -> list[Row]:
        """The rows there are; none where nothing has been evaluated yet.

        Raises:
            ResreproError: the file was changed since it was written.
        """
        return self.results()[1]

    def results(self) -> tuple[dict[str, Any] | None, list[Row]]:
        """What `summary` and `metrics` give, of the same moment.

        Raises:
            ResreproError: a file was changed since it was written.
        """
        # The summary first: metrics.csv is written before it, and so has all it speaks of.
        summary = self.summary()
        count = summary["rows"] if summary else 0
        if summary is None or count == 0:  # a run that failed before it began has no metrics.csv
            return summary, []
        try:
            content = self._metrics_file.read_bytes()
            rows = _rows(content)[:count]
            if _sha256(content) == summary["metrics_sha256"]:
                return summary, rows
            # It may have grown since the summary was read.
            before = _csv(rows)
            grown = len(rows) == count and content.startswith(before)
            if grown and _sha256(before) == summary["metrics_sha256"]:
                return summary, rows
        except (OSError, ValueError, TypeError, IndexError, csv.Error):
            pass
        raise ResreproError(
            f"{self._metrics_file} is damaged: it is not what summary.json says was written; "
            "the run's command, given again, restores it from the checkpoint"
        )

    # summary.json

    @property
    def _summary_file(self) -> Path:
        return self.path / "summary.json"

    def write_summary(self, summary: dict[str, Any], rows: Sequence[Row]) -> None:
        """Replaces summary.json; adds what ties it to metrics.csv and to itself."""
        if not self._config_file.exists():  # removed while the run went on
            self._write_config(self.config())
        body = summary | {
            "name": self.config().name,
            "config_hash": config_hash(self.config()),
            "rows": len(rows),
            "metrics_sha256": _sha256(_csv(rows)),
        }
        _write_json(self._summary_file, body)

    def summary(self) -> dict[str, Any] | None:
        """What is known of the run; None where it has not begun.

        Raises:
            ResreproError: the file was changed since it was written, or config.yaml was.
        """
        try:
            summary = _read_json(self._summary_file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ResreproError(f"{self._summary_file} cannot be read: {error.strerror}") from error
        config = self.config()
        hash_and_name = summary["config_hash"], summary.get("name", config.name)
        if hash_and_name != (config_hash(config), config.name):
            raise ResreproError(f"{self.path}: config.yaml and summary.json are of different runs")
        return summary

    def write_results(self, summary: dict[str, Any], rows: Sequence[Row]) -> None:
        """Replaces both files, so that metrics.csv has at all times what summary.json speaks of.

        It grows before the summary does, and shrinks (when a run goes on from a checkpoint that
        is older than its last row) after it.
        """
        try:
            shrinks = (self.summary() or {"rows": 0})["rows"] > len(rows)
        except ResreproError:
            shrinks = False
        if shrinks:
            self.write_summary(summary, rows)
        self.write_metrics(rows)
        if not shrinks:
            self.write_summary(summary, rows)

    # responses.json

    @property
    def _responses_file(self) -> Path:
        return self.path / "responses.json"

    def write_responses(self, deviations: list[float]) -> None:
        """Replaces responses.json: the deviation of each 3x3 layer's responses (figure 7)."""
        body = {"config_hash": config_hash(self.config()), "deviations": deviations}
        _write_json(self._responses_file, body)

    def responses(self) -> list[float] | None:
        """What `write_responses` wrote; None where it has not, or the file is damaged."""
        try:
            body = _read_json(self._responses_file)
        except (OSError, ResreproError):
            return None
        return (
            list(body["deviations"]) if body["config_hash"] == config_hash(self.config()) else None
        )

    # checkpoint.pt

    @property
    def _checkpoint_files(self) -> tuple[Path, Path]:
        return self.path / "checkpoint.pt", self.path / "checkpoint.previous.pt"

    def save_checkpoint(self, state: dict[str, Any], config: Config) -> None:
        """Replaces the checkpoint, and keeps the one before.

        Args:
            state: tensors, numbers, strings and containers of them.
            config: the run's.
        """
        import torch

        state = {"format": CHECKPOINT_FORMAT, "config_hash": config_hash(config), **state}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        newest, previous = self._checkpoint_files
        # A damaged one must not take the place of the whole one that the run went on from.
        if newest.exists() and not self._newest_is_damaged:
            newest.replace(previous)
        write_atomically(newest, content + _seal(content))
        self._newest_is_damaged = False

    def load_checkpoint(self, config: Config) -> tuple[dict[str, Any] | None, str | None]:
        """The newest checkpoint that is whole, on the CPU, and a warning if that is the older one.

        Returns:
            (None, None) where there has been none yet.

        Raises:
            ResreproError: there are checkpoints and none of them can be used, or there must have
                been one, for a row is only written after a checkpoint.
        """
        problems = []
        for file in self._checkpoint_files:
            if file.exists():
                try:
                    state = self._read_checkpoint(file, config)
                except Exception as error:  # torch raises anything for a damaged file
                    problems.append(f"{file.name}: {one_line(error)}")
                else:
                    self._newest_is_damaged = bool(problems)
                    if file != self._checkpoint_files[0] and not problems:
                        problems = ["checkpoint.pt is missing"]
                    troubles = "; ".join(problems)
                    return state, f"{troubles}; went on from {file.name}" if problems else None
        if not problems and self._has_rows():
            problems = ["checkpoint.pt is missing"]
        if problems:
            raise ResreproError(
                f"{self.path}: no checkpoint can be used ({'; '.join(problems)}); "
                "to begin again, remove the directory"
            )
        return None, None

    def load_final_checkpoint(self) -> dict[str, Any]:
        """The newest checkpoint, which of a complete run must be that of its end.

        Raises:
            ResreproError: there is none, or it is damaged or lost.
        """
        config, summary = self.config(), self.summary()
        state, warning = self.load_checkpoint(config)
        if state is None:
            raise ResreproError(f"{self.path} has no checkpoint; train the run first")
        is_complete = summary is not None and summary["status"] == "complete"
        if is_complete and state["iteration"] != config.recipe.iterations:
            raise ResreproError(
                f"{self.path}: the last checkpoint is {'damaged' if warning else 'lost'}, that of "
                f"iteration {state['iteration']} is left; the run's command, given again, goes on "
                "from there"
            )
        return state

    def _has_rows(self) -> bool:
        """Whether anything was ever evaluated, as far as the files tell."""
        try:
            written = (self.summary() or {}).get("rows", 0)
        except ResreproError:
            written = 0
        size = self._metrics_file.stat().st_size if self._metrics_file.exists() else 0
        return written > 0 or size > len(_csv([]))

    def has_checkpoint(self) -> bool:
        """Whether there is one, whole or not."""
        return any(file.exists() for file in self._checkpoint_files)

    def checkpoint_digest(self) -> str:
        """SHA-256 of the newest checkpoint.

        Raises:
            ResreproError: there is none.
        """
        newest, _ = self._checkpoint_files
        if not newest.exists():
            raise ResreproError(f"{newest} is missing: train the run first")
        return _sha256(newest.read_bytes())

    def _has_anothers_checkpoint(self, config: Config) -> bool:
        def is_anothers(file: Path) -> bool:
            try:
                self._read_checkpoint(file, config)
            except Exception as error:  # damage is told where a checkpoint is needed
                return isinstance(error, _OfAnotherRun)
            return False

        return any(map(is_anothers, filter(Path.exists, self._checkpoint_files)))

    def _read_checkpoint(self, file: Path, config: Config) -> dict[str, Any]:
        import torch

        sealed = file.read_bytes()
        content = sealed[:-SEAL_LENGTH]
        if sealed[-SEAL_LENGTH:] != _seal(content):
            raise ValueError("is damaged, its digest does not fit")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if state["format"] not in (1, CHECKPOINT_FORMAT):
            raise ValueError(f"has format {state['format']}, and {CHECKPOINT_FORMAT} is read here")
        if state["config_hash"] != config_hash(config):
            raise _OfAnotherRun("belongs to another run")
        return dict(state)

    # train.log and the lock

    def log(self, line: str) -> None:
        """Appends a line to train.log."""
        path = self.path / "train.log"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        except OSError as error:
            raise cannot_be_written(path, error) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes this process the only one that writes here; the lock dies with its process.

        Raises:
            Locked: another process has it; the message names it.
        """
        try:
            lock = acquire(self.path / ".lock", LOCK_SECONDS)
        except Timeout:
            raise Locked(f"{self.path} is being trained by {self.holder()}") from None
        try:
            holder = f"process {os.getpid()} on {socket.gethostname()}"
            self._sweep()
            write_atomically(self.path / ".holder", holder.encode())
            yield
        finally:
            lock.release()

    def _sweep(self) -> None:
        """Removes what a killed process had half written, of the files that the lock is for."""
        for file in self.path.glob(".*.partial"):
            if not file.name.startswith(f".{self._responses_file.name}."):
                file.unlink(missing_ok=True)

    def is_locked(self) -> bool | None:
        """Whether a living process trains here; None where the file system cannot tell."""
        try:
            acquire(self.path / ".lock", timeout=0).release()
        except Timeout:
            return True
        except ResreproError:
            return None
        except OSError:  # nobody can write here
            return False
        return False

    def is_held(self) -> bool:
        """Whether a process is known to train here."""
        return self.path.is_dir() and self.is_locked() is True

    def holder(self) -> str:
        """Who has the lock, or had it last, in words."""
        try:
            return (self.path / ".holder").read_text("utf-8")
        except OSError:
            return "another process"

    def host(self) -> str:
        """The host that trains here, or did last; empty where that is not known."""
        return self.holder().partition(" on ")[2]


def find_runs(outputs: str | Path, experiment: str) -> list[RunDirectory]:
    """The run directories of an experiment, in the natural order of their names.

    Raises:
        ResreproError: there are none.
    """
    folder = Path(outputs).expanduser() / experiment
    children = folder.iterdir() if folder.is_dir() else []
    runs = [run for run in map(RunDirectory, children) if run.exists()]
    runs.sort(key=lambda run: natural(run.name))
    if not runs:
        raise ResreproError(
            f"there are no runs in {folder}; train some with "
            f"`resrepro train -m depth=20,56 experiment={experiment}`"
        )
    return runs


def find_experiments(outputs: str | Path) -> list[str]:
    """The names of the experiments in a folder that have runs."""
    folder = Path(outputs).expanduser()
    configs = folder.glob("*/*/config.yaml") if folder.is_dir() else []
    return sorted({config.parent.parent.name for config in configs}, key=natural)


def natural(name: str) -> list[str | float]:
    """Sorts numbers in names by their value: plain-8 before plain-14."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def too_deep(outputs: str | Path) -> str:
    """What to say where a folder of outputs is an experiment's, or a run's; else nothing."""
    folder = Path(outputs).expanduser()
    if RunDirectory(folder).exists():
        folder = folder.absolute().parent
    elif not any(folder.glob("*/config.yaml")):
        return ""
    there = folder if folder.name else folder.absolute()
    return f"; did you mean outputs={there.parent} experiment={there.name}?"


def plan_seeds(folder: Path, seeds: int) -> None:
    """Records how many seeds an experiment plans, once: what was planned first stays."""
    file = folder / PLAN
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, f"{json.dumps({'seeds': seeds})}\n".encode())


def planned_seeds(folder: Path) -> int | None:
    """How many seeds of each net an experiment plans; None where none were.

    Raises:
        ResreproError: the file is damaged.
    """
    file = folder / PLAN
    if not file.exists():
        return None
    try:
        seeds = json.loads(file.read_bytes())["seeds"]
    except (ValueError, KeyError, TypeError) as error:
        raise ResreproError(f"{file} is damaged: {one_line(error)}") from error
    if not isinstance(seeds, int) or seeds < 1:
        raise ResreproError(f"{file}: seeds is {seeds!r} and must be 1 or more")
    return seeds


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue().encode()


def _rows(content: bytes) -> list[Row]:
    reader = csv.reader(io.StringIO(content.decode()))
    if tuple(next(reader, ())) != COLUMNS:
        raise ValueError("the header is not metrics.csv's")
    return [Row(int(values[0]), *map(float, values[1:])) for values in reader]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_json(file: Path, body: dict[str, Any]) -> None:
    """Writes a JSON file that carries the digest of all else in it."""
    sealed = body | {"digest": _json_digest(body)}
    write_atomically(file, (json.dumps(sealed, indent=2) + "\n").encode())


def _read_json(file: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(file.read_bytes())
        if body.pop("digest") == _json_digest(body):
            return body
    except (ValueError, AttributeError, KeyError, TypeError):
        pass
    raise ResreproError(
        f"{file} is damaged: it is not what was written; the run's command, given again, restores "
        "it"
    )


def _json_digest(body: dict[str, Any]) -> str:
    return _sha256(json.dumps(body, sort_keys=True).encode())


def _seal(content: bytes) -> bytes:
    """A checkpoint's last bytes: the digest of all before. A zip reader passes over them."""
    return f"sha256:{_sha256(content)}".encode()


SEAL_LENGTH = len(_seal(b""))
