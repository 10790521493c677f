"""The paper's claims as questions to the nets there are, and the verdicts as files."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tabulate import tabulate

from resrepro.files import write_atomically
from resrepro.paper.curves import Group, Run, net_name
from resrepro.paper.verdicts import Estimate, Question, Term, Verdict, judge

MARGIN = 0.5  # points of error
RESPONSE_MARGIN = 0.05  # of the natural logarithm
SEED_DEVIATION = 0.6  # points; of one seed's error, assumed where there is only one
RESPONSE_DEVIATION = 0.1  # the same for the logarithm of responses

TRAIN, TEST, CLEAN = "final_train_error", "final_test_error", "clean_train_error"
RESPONSE = "mean_log_response"

WORDS = ("supported", "contradicted", "not decided")

# A net's quantity with its sign in a difference: sign, model, depth, quantity.
Wanted = tuple[int, str, int, str]


def estimate(runs: list[Run], quantity: str) -> Estimate:
    """The mean of a quantity over complete runs, with the spread of one seed."""
    values = np.array([getattr(run, quantity) for run in runs], float)
    if len(values) > 1:
        return Estimate(float(values.mean()), float(values.var(ddof=1)), len(values), False)
    if quantity == RESPONSE:
        return Estimate(float(values[0]), RESPONSE_DEVIATION**2, 1, True)
    p = values[0] / 100
    sampling = 1e4 * p * (1 - p) / runs[0].images(quantity)
    return Estimate(float(values[0]), SEED_DEVIATION**2 + sampling, 1, True)


class Asker:
    """Turns what a claim wants to know into a question to the nets of a group."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def depths(self, model: str) -> tuple[int, int]:
        """The shallow and the deep net of a family: 20 and 56 layers, or what comes nearest."""
        there_are = [net.depth for net in self.group.select(model) if net.complete]
        usual = [depth for depth in there_are if depth <= 56]
        if len(usual) < 2:
            usual = there_are
        if len(usual) < 2:  # no pair: the one that is missing is named by the paper's depth
            only = usual[0] if usual else 20
            return (only, 56) if only < 56 else (20, only)
        return 20 if 20 in usual[:-1] else usual[0], usual[-1]

    def runs(self, model: str, depth: int, quantity: str) -> list[Run]:
        """The complete runs of a net for which a quantity is known."""
        runs = [run for net in self.group.select(model, [depth]) for run in net.complete]
        return [run for run in runs if getattr(run, quantity) is not None]

    def ask(
        self,
        key: str,
        claim: str,
        source: str,
        wanted: Iterable[Wanted],
        above: bool = True,
        margin: float = MARGIN,
    ) -> Question:
        """A question about the signed sum of nets' quantities."""
        terms, missing = [], []
        for sign, model, depth, quantity in wanted:
            name = net_name(model, depth)
            if runs := self.runs(model, depth, quantity):
                terms.append(Term(sign, name, estimate(runs, quantity)))
            else:
                missing.append(f"{name}'s responses" if quantity == RESPONSE else name)
        unit = "log ratio" if quantity == RESPONSE else "points"
        found = () if missing else tuple(terms)
        return Question(
            key, claim, source, found, above, margin, unit, tuple(dict.fromkeys(missing))
        )


def questions(group: Group) -> list[Question]:
    """Every claim of the paper's CIFAR study, with the numbers of the nets there are."""
    asker = Asker(group)
    return [
        *_degradation(asker),
        *_residual(asker),
        *_construction(asker),
        *_responses(asker),
        *_very_deep(asker),
    ]


def _degradation(asker: Asker) -> list[Question]:
    a, b = asker.depths("plain")
    source = "section 4.2, figures 1 and 6 left"
    return [
        asker.ask(
            "plain-train",
            f"Deeper plain nets have a higher training error ({b} against {a} layers), so it is "
            "not overfitting",
            source,
            [(1, "plain", b, TRAIN), (-1, "plain", a, TRAIN)],
        ),
        asker.ask(
            "plain-test",
            f"Deeper plain nets have a higher test error ({b} against {a} layers)",
            source,
            [(1, "plain", b, TEST), (-1, "plain", a, TEST)],
        ),
    ]


def _residual(asker: Asker) -> list[Question]:
    a, b = asker.depths("residual")
    source = "section 4.2, figure 6 middle"
    gain = "section 4.2, figure 6 and table 6"
    made = [
        asker.ask(
            f"residual-{split}",
            f"Deeper residual nets do not have a higher {word} error ({b} against {a} layers)",
            source,
            [(1, "residual", b, quantity), (-1, "residual", a, quantity)],
            above=False,
        )
        for split, word, quantity in (("train", "training", TRAIN), ("test", "test", TEST))
    ]

    def advantage(depth: int, sign: int = 1) -> list[Wanted]:
        return [(sign, "plain", depth, TEST), (-sign, "residual", depth, TEST)]

    made += [
        asker.ask(
            f"residual-beats-plain-{word}",
            f"A residual net of {depth} layers has a lower test error than the plain one",
            gain,
            advantage(depth),
        )
        for word, depth in (("shallow", a), ("deep", b))
    ]
    claim = f"The advantage of residual nets is larger at {b} than at {a} layers"
    made.append(
        asker.ask("residual-beats-plain-more", claim, gain, advantage(b) + advantage(a, -1))
    )
    return made


def _construction(asker: Asker) -> list[Question]:
    a, b = asker.depths("plain")
    source = "section 1"
    made = [
        run
        for run in asker.group.constructed
        if (run.config.model.name, run.config.depth) == ("plain", b)
    ]
    origins = sorted({run.origin for run in made if run.origin})
    if origins and a not in origins:  # a study with shallower nets begins from those
        a = origins[0]
    made = [run for run in made if run.origin == a]
    shallow = {run.config.seed: run for run in asker.runs("plain", a, CLEAN)}
    excess = [
        run.clean_train_error - shallow[run.config.seed].clean_train_error
        for run in made
        if run.config.seed in shallow
    ]
    name = f"plain-{b} constructed from plain-{a}"
    # The largest excess of any seed: it is computed, so none may be above zero.
    exists = Term(1, name, Estimate(max(excess, default=0.0), 0.0, len(excess), False))
    missing = () if excess else (name,)
    sgd = asker.runs("plain", b, CLEAN)
    terms = [
        Term(1, f"plain-{b}", estimate(sgd, CLEAN)) if sgd else None,
        Term(-1, name, estimate(made, CLEAN)) if made else None,
    ]
    found = tuple(term for term in terms if term is not None)
    return [
        Question(
            "construction-exists",
            f"A plain net of {b} layers exists that is as good as the trained one of {a}: its "
            "training error (no augmentation) is no higher",
            source,
            (exists,) if excess else (),
            above=False,
            margin=0.0,
            unit="points",
            missing=missing,
            certain=True,
        ),
        Question(
            "construction-sgd",
            f"SGD finds a worse one: its plain net of {b} layers has a higher training error (no "
            "augmentation) than the constructed one",
            source,
            found if len(found) == 2 else (),
            above=True,
            margin=MARGIN,
            unit="points",
            missing=tuple(dict.fromkeys((*missing, *(() if sgd else (f"plain-{b}",))))),
        ),
    ]


def _responses(asker: Asker) -> list[Question]:
    a, b = asker.depths("residual")
    source = "section 4.2, figure 7"
    return [
        asker.ask(
            "responses-residual",
            f"The responses of residual nets are smaller than those of plain nets ({b} layers)",
            source,
            [(1, "residual", b, RESPONSE), (-1, "plain", b, RESPONSE)],
            above=False,
            margin=-RESPONSE_MARGIN,
        ),
        asker.ask(
            "responses-depth",
            f"The responses of deeper residual nets are smaller ({b} against {a} layers)",
            source,
            [(1, "residual", b, RESPONSE), (-1, "residual", a, RESPONSE)],
            above=False,
            margin=-RESPONSE_MARGIN,
        ),
    ]


def _very_deep(asker: Asker) -> list[Question]:
    half_of_guessing = 50 * (1 - 1 / asker.group.classes)
    source = "section 4.2, on 110 layers"
    return [
        asker.ask(
            f"110-{model}",
            f"A {model} net of 110 layers {verb}: its training error is {side} half of guessing's",
            source,
            [(1, model, 110, TRAIN)],
            above=model == "plain",
            margin=half_of_guessing,
        )
        for model, verb, side in (
            ("residual", "trains", "below"),
            ("plain", "does not train", "above"),
        )
    ]


def write_claims(group: Group, folder: Path) -> list[Verdict]:
    """Judges all claims and writes claims.json and claims.md."""
    verdicts = judge(questions(group))
    stem = f"claims-{group.tag}" if group.tag else "claims"
    body = json.dumps([asdict(verdict) for verdict in verdicts], indent=2, ensure_ascii=False)
    write_atomically(folder / f"{stem}.json", f"{body}\n".encode())
    write_atomically(folder / f"{stem}.md", _markdown(group, verdicts).encode())
    return verdicts


HEADERS = ("verdict", "claim", "number", "95% interval", "margin", "p, adjusted", "seeds", "why")


def row(verdict: Verdict) -> tuple[str, ...]:
    """A verdict as the cells of a table."""
    if verdict.value is None or verdict.interval is None:
        return (verdict.verdict, verdict.claim, "", "", "", "", "", verdict.why)
    low, high = verdict.interval
    counts = sorted(set((verdict.n or {}).values()))
    return (
        verdict.verdict,
        verdict.claim,
        f"{verdict.value:+.2f} {verdict.unit}",
        f"{low:+.2f} to {high:+.2f}",
        f"{verdict.margin:g}",
        "" if verdict.p_adjusted is None else _p_text(verdict.p_adjusted),
        " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))),
        verdict.why,
    )


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _markdown(group: Group, verdicts: list[Verdict]) -> str:
    counts = {word: sum(v.verdict == word for v in verdicts) for word in WORDS}
    lines = [
        f"# Verdicts on the paper's claims: {group.title}",
        "",
        f"{group.caption()}.",
        "",
        ", ".join(f"{count} {word}" for word, count in counts.items()) + ". How they are judged: "
        "docs/fidelity.md. Differences are of final errors; the interval is each claim's own, the "
        "p-value is adjusted for all of them.",
        "",
        tabulate([row(v) for v in verdicts], HEADERS, "github", disable_numparse=True),
        "",
    ]
    return "\n".join(lines)
