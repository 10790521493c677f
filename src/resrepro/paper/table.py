"""Table 6: the final errors of every net, beside the paper's and other reproductions'."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tabulate import tabulate

from resrepro.files import write_atomically
from resrepro.paper.curves import Group, Net, Run, net_name
from resrepro.paper.published import AKAMASTER, AMARTYN, PUBLISHED, Published

HEADERS = (
    "net",
    "parameters",
    "n",
    "final test error %",
    "best test error %",
    "final training error %",
    "paper, test %",
    "difference",
    "a-martyn, train / test %",
    "akamaster, test %",
)


def final_errors(group: Group) -> str:
    """The table's own columns, for the terminal: within 80 columns."""
    return tabulate(
        [row[:6] for row in rows(group)],
        HEADERS[:6],
        "simple",
        maxheadercolwidths=12,
        colalign=("left", *["right"] * 5),
        disable_numparse=True,
    )


def rows(group: Group) -> list[tuple[str, ...]]:
    """A row for each net that has complete runs, and each constructed solution."""
    made = [
        _row(net.name, net.complete, _published(net), group.comparable)
        for net in group.nets
        if net.complete
    ]
    constructed: dict[tuple[str, int, int], list[Run]] = {}
    for run in group.constructed:
        key = (run.config.model.name, run.config.depth, run.origin or 0)
        constructed.setdefault(key, []).append(run)
    for (model, depth, origin), runs in sorted(constructed.items()):
        name = f"{net_name(model, depth)} from {origin}"
        made.append(_row(name, runs, Published(), False))
    return made


def filled(table: list[tuple[str, ...]]) -> tuple[list[str], list[list[str]]]:
    """The headers and rows of a table without its empty columns."""
    used = [i for i, cells in enumerate(zip(*table, strict=True)) if any(cells)]
    return [HEADERS[i] for i in used], [[row[i] for i in used] for row in table]


def _published(net: Net) -> Published:
    return PUBLISHED.get((net.model, net.depth), Published())


def _row(name: str, runs: list[Run], published: Published, comparable: bool) -> tuple[str, ...]:
    test = [run.final_test_error for run in runs]
    difference = ""
    if comparable and published.paper is not None:
        difference = f"{np.mean(test) - published.paper:+.2f}"
    return (
        name,
        f"{runs[0].summary['parameters']:,}",
        str(len(runs)),
        mean(test),
        mean([run.best_test_error for run in runs]),
        mean([run.final_train_error for run in runs]),
        published.paper_text,
        difference,
        "{:.2f} / {:.2f}".format(*published.amartyn) if published.amartyn else "",
        f"{published.akamaster:.2f}" if published.akamaster else "",
    )


def mean(values: Iterable[float]) -> str:
    """Values as their mean, with their deviation where there are several."""
    numbers = np.array(list(values))
    if len(numbers) == 1:
        return f"{numbers[0]:.2f}"
    return f"{numbers.mean():.2f} ± {numbers.std(ddof=1):.2f}"


def notes(group: Group) -> list[str]:
    """What a reader of the table must know."""
    lines = [
        f"{group.caption()}. Mean ± deviation over n seeds. Final: of the last iteration. Best: "
        "the lowest of all evaluations on the test set, which flatters. Training errors are "
        "running means over the last augmented batches; of nets made by construction (N from M), "
        "over the training images as they are.",
        "Published: He et al. 2015, table 6, plain nets read off figure 6; "
        f"{AMARTYN}; {AKAMASTER}. All of these are on CIFAR-10 with the whole recipe.",
    ]
    if not group.comparable:
        lines.append(
            "These runs are on other data or of other nets: the published values say only how nets "
            "compare."
        )
    return lines


def write_table(group: Group, folder: Path) -> Path:
    """Writes table6.md, .csv and .tex; returns the first."""
    stem = f"table6-{group.tag}" if group.tag else "table6"
    table = rows(group)
    folder.mkdir(parents=True, exist_ok=True)
    align = ("left", *["right"] * (len(HEADERS) - 1))
    headers, cells = filled(table)
    markdown = tabulate(
        cells, headers, "github", colalign=align[: len(headers)], disable_numparse=True
    )
    text = "\n\n".join([f"# Table 6: {group.title}", markdown, *notes(group)])
    write_atomically(folder / f"{stem}.md", f"{text}\n".encode())

    latex = tabulate(table, HEADERS, "latex_booktabs", colalign=align, disable_numparse=True)
    write_atomically(folder / f"{stem}.tex", f"{latex}\n".replace("±", r"$\pm$").encode())

    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows([HEADERS, *table])
    write_atomically(folder / f"{stem}.csv", content.getvalue().encode())
    return folder / f"{stem}.md"
