"""All that a study is for, made from its run directories, with what is missing named."""

from collections.abc import Iterator
from pathlib import Path

from resrepro.errors import ResreproError
from resrepro.paper.claims import seeds_text, tally, write_claims
from resrepro.paper.curves import Group, collect
from resrepro.paper.figures import FIGURES, plot_figures
from resrepro.paper.report import Part, write_report
from resrepro.paper.table import final_errors, write_table
from resrepro.paper.verdicts import Verdict

EVERYTHING = (*FIGURES, "table6", "claims", "report")


def make_artefacts(outputs: str, experiment: str, artefacts: list[str]) -> Iterator[str]:
    """Makes figures, table, verdicts and the report, or some of them; yields lines to print.

    Raises:
        ResreproError: there is nothing to make them from.
    """
    folder = Path(outputs).expanduser() / experiment
    wanted = set(EVERYTHING if "report" in artefacts else artefacts)
    figures = [name for name in FIGURES if name in wanted]
    groups = collect(outputs, experiment)
    unmeasured: dict[str | None, list[str]] = {}
    if {"figure7", "claims"} & wanted:
        unmeasured = {group.tag: list(measure_missing(group)) for group in groups}
        if sum(map(len, unmeasured.values())) < sum(len(group.unmeasured) for group in groups):
            groups = collect(outputs, experiment)

    files: list[str] = []
    parts = []
    for group in groups:
        drawn, not_drawn = plot_figures(group, folder / "figures", figures)
        missing = [*group.missing, *not_drawn, *unmeasured.get(group.tag, [])]
        files += [f"{figure.file} (SVG and PDF beside it)" for figure in drawn]
        if "table6" in wanted:
            yield f"final errors, {group.title}:\n\n{final_errors(group)}\n"
            files.append(str(write_table(group, folder / "tables")))
        verdicts = []
        if "claims" in wanted:
            verdicts = write_claims(group, folder)
            yield from _verdict_lines(verdicts)
            name = f"claims-{group.tag}.md" if group.tag else "claims.md"
            files.append(f"{folder / name} (primary claims: {tally(verdicts)})")
            yield ""
        yield from (f"missing: {text}" for text in missing)
        parts.append(Part(group, drawn, verdicts, missing))
    yield from files
    if "report" in wanted:
        yield str(write_report(experiment, parts, folder / "report.html"))


def measure_missing(group: Group) -> Iterator[str]:
    """Measures the responses of every complete run that lacks them; yields why one cannot be."""
    for run in group.unmeasured:
        directory = run.directory
        try:
            if not directory.has_checkpoint():
                raise ResreproError("it has no checkpoint")
            from resrepro.paper.responses import responses  # brings PyTorch along

            directory.write_responses(responses(directory))
        except (ResreproError, OSError) as error:
            yield f"the responses of {directory.name} cannot be measured: {error}"


def _verdict_lines(verdicts: list[Verdict]) -> Iterator[str]:
    """The verdicts for the terminal, with n; why, where they leave something open."""
    for is_primary, title in ((True, "primary claims"), (False, "secondary claims")):
        yield f"{title}:"
        for verdict in verdicts:
            if verdict.primary == is_primary:
                seeds = f", n = {seeds_text(verdict)}" if verdict.n else ""
                yield f"{verdict.word:<16}{verdict.statement}{seeds}"
                if verdict.word in ("not decided", "indicated"):
                    yield f"{'':16}{verdict.reason}"
