"""The paper's claims as questions to the nets there are, and the verdicts as files."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tabulate import tabulate

from resrepro.files import write_atomically
from resrepro.paper.curves import Group, Run, net_name
from resrepro.paper.verdicts import WORDS, Question, Sample, Term, Verdict, judge, pool
from resrepro.runs.run_directory import planned_seeds

MARGIN = 0.5  # points of error
RESPONSE_MARGIN = 0.05  # of the natural logarithm
# Points of error, five of CIFAR-10's images: an identity layer keeps a net's outputs but for
# rounding, which decides between classes that all but tie, and on another device otherwise.
ROUNDING = 0.01
# The deviation of one seed's log-odds, assumed where a net has one seed: after the paper's
# number of iterations, and after fewer. Sources in docs/fidelity.md.
ASSUMED, ASSUMED_SHORT, WHOLE = 0.1, 0.4, 64000
ASSUMED_RESPONSE = 0.2  # that of the logarithm of responses
NEAR_GUESSING = 0.9  # of guessing's error, on the training images

TRAIN, TEST, RESPONSE = "clean_train_error", "final_test_error", "mean_log_response"

NetKey = tuple[str, int]  # family and depth
# A net's quantity with its sign in a difference: sign, family, depth, quantity.
Wanted = tuple[int, str, int, str]


@dataclass(frozen=True)
class Numbers:
    """What claims are made of: the finished runs of a study.

    Attributes:
        values: by quantity and net the value of each seed.
        images: that each error was measured on.
        classes: of the data set.
        assumed: the deviation of one seed's log-odds where none can be measured.
        excess: by depths (deep, shallow) the constructed plain nets' clean training error less
            that of the trained one of the same seed.
        constructed: by the same their clean training errors.
    """

    values: dict[str, dict[NetKey, dict[int, float]]]
    images: dict[str, int]
    classes: int
    assumed: float
    excess: dict[tuple[int, int], list[float]]
    constructed: dict[tuple[int, int], list[float]]

    def sample(self, family: str, depth: int, quantity: str) -> Sample | None:
        """A net's values, if there are any."""
        values = self.values[quantity].get((family, depth))
        name = net_name(family, depth)
        return Sample(name, tuple(values.values()), self.images.get(quantity)) if values else None


def numbers(group: Group) -> Numbers:
    """The numbers of a group's complete runs."""
    runs = [run for net in group.nets for run in net.complete]
    values: dict[str, dict[NetKey, dict[int, float]]] = {TRAIN: {}, TEST: {}, RESPONSE: {}}
    for run in runs:
        for quantity, nets in values.items():
            if (value := getattr(run, quantity)) is not None:
                nets.setdefault(_key(run), {})[run.config.seed] = value
    images = {quantity: runs[0].images(quantity) for quantity in (TRAIN, TEST)} if runs else {}
    excess: dict[tuple[int, int], list[float]] = {}
    constructed: dict[tuple[int, int], list[float]] = {}
    for run in group.constructed:
        if run.config.model.name == "plain" and run.origin:
            pair = run.config.depth, run.origin
            constructed.setdefault(pair, []).append(run.clean_train_error)
            shallow = values[TRAIN].get(("plain", run.origin), {})
            if run.config.seed in shallow:
                more = run.clean_train_error - shallow[run.config.seed]
                excess.setdefault(pair, []).append(more)
    assumed = ASSUMED if group.config.recipe.iterations >= WHOLE else ASSUMED_SHORT
    return Numbers(values, images, group.classes, assumed, excess, constructed)


def _key(run: Run) -> NetKey:
    return run.config.model.name, run.config.depth


class Asker:
    """Turns what a claim wants to know into a question to the nets of a study."""

    def __init__(self, given: Numbers) -> None:
        self.given = given
        self.pools = {
            quantity: pool(
                (sample for net in nets if (sample := given.sample(*net, quantity)) is not None),
                ASSUMED_RESPONSE if quantity == RESPONSE else given.assumed,
            )
            for quantity, nets in given.values.items()
        }

    @property
    def families(self) -> list[str]:
        """Those that are judged against plain: the paper's where there is no other."""
        there_are = {family for family, _ in self.given.values[TEST]} - {"plain"}
        return sorted(there_are, key=lambda family: (family != "residual", family)) or ["residual"]

    def depths(self, family: str) -> tuple[int, int]:
        """The shallow and the deep net of a family: 20 and 56 layers, or what comes nearest."""
        there_are = sorted(depth for name, depth in self.given.values[TEST] if name == family)
        usual = [depth for depth in there_are if depth <= 56]
        if len(usual) < 2:
            usual = there_are
        if len(usual) < 2:  # no pair: the one that is missing is named by the paper's depth
            only = usual[0] if usual else 20
            return (only, 56) if only < 56 else (20, only)
        return 20 if 20 in usual[:-1] else usual[0], usual[-1]

    def ask(
        self,
        id: str,  # noqa: A002 (what it is called in claims.json)
        statement: str,
        source: str,
        wanted: Iterable[Wanted],
        *,
        primary: bool = False,
        family: str = "plain",
        above: bool = True,
        margin: float = MARGIN,
        opposite: float | None = None,
    ) -> Question:
        """A question about the signed sum of nets' quantities; the opposite mirrors the margin."""
        terms, missing = [], []
        wanted = list(wanted)
        for sign, model, depth, quantity in wanted:
            if sample := self.given.sample(model, depth, quantity):
                terms.append(Term(sign, sample))
            else:
                name = net_name(model, depth)
                missing.append(f"{name}'s responses" if quantity == RESPONSE else name)
        quantity = wanted[0][3]
        return Question(
            id,
            primary,
            family,
            statement,
            source,
            () if missing else tuple(terms),
            self.pools[quantity],
            above,
            margin,
            -margin if opposite is None else opposite,
            "log ratio" if quantity == RESPONSE else "points",
            tuple(dict.fromkeys(missing)),
            self.unlearned([(model, depth) for _, model, depth, _ in wanted]),
        )

    def unlearned(self, nets: list[NetKey]) -> str:
        """Says that nets are all near guessing, if they are."""
        guessing = 100 * (1 - 1 / self.given.classes)
        errors = [
            sample.mean for net in nets if (sample := self.given.sample(*net, TRAIN)) is not None
        ]
        if not errors or min(errors) < NEAR_GUESSING * guessing:
            return ""
        return (
            f"nothing was learned: training errors of {min(errors):.0f}% and more, where guessing "
            f"has {guessing:.0f}%"
        )


def primary_questions(asker: Asker) -> list[Question]:
    """The claims that are tested together: plain nets degrade, other families do not."""
    a, b = asker.depths("plain")
    asked = [
        asker.ask(
            "plain-train",
            f"Deeper plain nets have a higher training error ({b} against {a} layers), so it is "
            "not overfitting",
            "section 4.2, figures 1 and 6 left",
            [(1, "plain", b, TRAIN), (-1, "plain", a, TRAIN)],
            primary=True,
        )
    ]
    for family in asker.families:
        a, b = asker.depths(family)
        asked += [
            asker.ask(
                f"{family}-{split}",
                f"Deeper {family} nets do not have a higher {word} error ({b} against {a} layers)",
                "section 4.2, figure 6 middle",
                [(1, family, b, quantity), (-1, family, a, quantity)],
                primary=True,
                family=family,
                above=False,
                opposite=MARGIN,
            )
            for split, word, quantity in (("train", "training", TRAIN), ("test", "test", TEST))
        ]
        asked.append(
            asker.ask(
                f"{family}-beats-plain-deep",
                f"A {family} net of {b} layers has a lower test error than the plain one",
                "section 4.2, figure 6 and table 6",
                [(1, "plain", b, TEST), (-1, family, b, TEST)],
                primary=True,
                family=family,
            )
        )
    return asked


def questions(given: Numbers) -> list[Question]:
    """Every claim of the paper's CIFAR study, the primary ones first."""
    asker = Asker(given)
    families = asker.families
    return [
        *primary_questions(asker),
        _plain_test(asker),
        *(question for family in families for question in _gain(asker, family)),
        *_construction(asker),
        *(question for family in families for question in _responses(asker, family)),
        *_very_deep(asker),
    ]


def _plain_test(asker: Asker) -> Question:
    a, b = asker.depths("plain")
    return asker.ask(
        "plain-test",
        f"Deeper plain nets have a higher test error ({b} against {a} layers)",
        "section 4.2, figures 1 and 6 left",
        [(1, "plain", b, TEST), (-1, "plain", a, TEST)],
    )


def _gain(asker: Asker, family: str) -> list[Question]:
    a, b = asker.depths(family)
    source = "section 4.2, figure 6 and table 6"
    return [
        asker.ask(
            f"{family}-gain",
            f"Deeper {family} nets have a lower test error ({b} against {a} layers)",
            source,
            [(1, family, b, TEST), (-1, family, a, TEST)],
            family=family,
            above=False,
            margin=-MARGIN,
        ),
        asker.ask(
            f"{family}-beats-plain-more",
            f"The advantage of {family} nets over plain ones is larger at {b} than at {a} layers",
            source,
            [
                (1, "plain", b, TEST),
                (-1, family, b, TEST),
                (-1, "plain", a, TEST),
                (1, family, a, TEST),
            ],
            family=family,
        ),
    ]


def _construction(asker: Asker) -> list[Question]:
    given = asker.given
    a, b = asker.depths("plain")
    origins = sorted(origin for deep, origin in given.constructed if deep == b)
    if origins and a not in origins:  # a study with shallower nets begins from those
        a = origins[0]
    excess, made = given.excess.get((b, a), []), given.constructed.get((b, a), [])
    name = f"plain-{b} constructed from plain-{a}"
    missing = () if excess else (name,)
    unlearned = asker.unlearned([("plain", a), ("plain", b)])
    sgd = given.sample("plain", b, TRAIN)
    terms = (
        (Term(1, sgd), Term(-1, Sample(name, tuple(made), given.images[TRAIN])))
        if sgd and made
        else ()
    )
    exists = (Term(1, Sample(name, tuple(excess), None)),) if excess else ()
    return [
        Question(
            id="construction-exists",
            primary=False,
            family="plain",
            source="section 1",
            unit="points",
            statement=f"A plain net of {b} layers exists that is as good as the trained one of "
            f"{a}: its training error is no higher",
            terms=exists,
            pool=asker.pools[TRAIN],
            above=False,
            margin=ROUNDING,
            opposite=ROUNDING,
            missing=missing,
            unlearned=unlearned,
            certain=True,
        ),
        Question(
            id="construction-sgd",
            primary=False,
            family="plain",
            source="section 1",
            unit="points",
            statement=f"SGD finds a worse one: its plain net of {b} layers has a higher training "
            "error than the constructed one",
            terms=terms,
            pool=asker.pools[TRAIN],
            above=True,
            margin=MARGIN,
            opposite=-MARGIN,
            missing=(*missing, *(() if sgd else (f"plain-{b}",))),
            unlearned=unlearned,
        ),
    ]


def _responses(asker: Asker, family: str) -> list[Question]:
    a, b = asker.depths(family)
    source = "section 4.2, figure 7"
    return [
        asker.ask(
            f"responses-{family}",
            f"The responses of {family} nets are smaller than those of plain nets ({b} layers)",
            source,
            [(1, family, b, RESPONSE), (-1, "plain", b, RESPONSE)],
            family=family,
            above=False,
            margin=-RESPONSE_MARGIN,
        ),
        asker.ask(
            f"responses-{family}-depth",
            f"The responses of deeper {family} nets are smaller ({b} against {a} layers)",
            source,
            [(1, family, b, RESPONSE), (-1, family, a, RESPONSE)],
            family=family,
            above=False,
            margin=-RESPONSE_MARGIN,
        ),
    ]


def _very_deep(asker: Asker) -> list[Question]:
    half_of_guessing = 50 * (1 - 1 / asker.given.classes)
    asked = [
        asker.ask(
            f"110-{family}",
            f"A {family} net of 110 layers {verb}: its training error is {side} half of guessing's",
            "section 4.2, on 110 layers",
            [(1, family, 110, TRAIN)],
            family=family,
            above=family == "plain",
            margin=half_of_guessing,
            opposite=half_of_guessing,
        )
        for family, verb, side in (
            ("residual", "trains", "below"),
            ("plain", "does not train", "above"),
        )
    ]
    # Near guessing is what the last one claims; whether anything was learned others show.
    asked[-1] = replace(asked[-1], unlearned=asker.unlearned(list(asker.given.values[TRAIN])))
    source = "section 4.2, on over 1,000 layers"

    def deeper(quantity: str) -> list[Wanted]:
        return [(1, "residual", 1202, quantity), (-1, "residual", 110, quantity)]

    return [
        *asked,
        asker.ask(
            "1202-train",
            "A residual net of 1,202 layers has no higher training error than one of 110",
            source,
            deeper(TRAIN),
            family="residual",
            above=False,
            opposite=MARGIN,
        ),
        asker.ask(
            "1202-test",
            "A residual net of 1,202 layers has a higher test error than one of 110",
            source,
            deeper(TEST),
            family="residual",
        ),
    ]


def twin_correlation(given: Numbers, quantity: str) -> tuple[float, int] | None:
    """How seeds of plain nets and of their twins of other families correlate, in log-odds.

    Returns:
        The correlation about the nets' means, pooled over all twins, and the number of pairs of
        runs; None where no twins share two seeds.
    """
    ours, theirs = [], []
    nets = given.values[quantity]
    for (family, depth), values in nets.items():
        plain = nets.get(("plain", depth), {})
        shared = sorted(values.keys() & plain.keys())
        if family != "plain" and len(shared) > 1:
            ours += _scatter([plain[seed] for seed in shared], given.images[quantity])
            theirs += _scatter([values[seed] for seed in shared], given.images[quantity])
    scale = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return (float(np.dot(ours, theirs)) / scale, len(ours)) if scale else None


def _scatter(values: list[float], images: int) -> list[float]:
    log_odds = Sample("", tuple(values), images).log_odds()
    return list(log_odds - log_odds.mean())


def write_claims(group: Group, folder: Path) -> list[Verdict]:
    """Judges all claims and writes claims.json and claims.md."""
    given = numbers(group)
    verdicts = judge(questions(given), planned_seeds(folder))
    stem = f"claims-{group.tag}" if group.tag else "claims"
    body = json.dumps([asdict(verdict) for verdict in verdicts], indent=2, ensure_ascii=False)
    write_atomically(folder / f"{stem}.json", f"{body}\n".encode())
    write_atomically(folder / f"{stem}.md", _markdown(group, given, verdicts).encode())
    return verdicts


def tally(verdicts: list[Verdict]) -> str:
    """How many primary claims got which word: "3 supported, 1 not decided"."""
    texts = {
        **{(word, ""): word for word in WORDS},
        ("indicated", "supported"): "indicated",
        ("indicated", "contradicted"): "indicated against",
        ("indicated", "no such effect"): "indicated to have no such effect",
    }
    words = [(v.word, v.leaning) for v in verdicts if v.primary]
    return ", ".join(f"{words.count(key)} {text}" for key, text in texts.items() if key in words)


HEADERS = ("verdict", "claim", "number", "95% interval", "margin", "p, adjusted", "seeds", "why")


def row(verdict: Verdict) -> tuple[str, ...]:
    """A verdict as the cells of a table."""
    if verdict.difference is None:
        return (verdict.word, verdict.statement, "", "", "", "", "", verdict.reason)
    low, high = verdict.interval or (None, None)
    return (
        verdict.word,
        verdict.statement,
        f"{signed(verdict.difference)} {verdict.unit}",
        "" if low is None or high is None else f"{signed(low)} to {signed(high)}",
        f"{verdict.margin:g}",
        "" if verdict.p is None else _p_text(verdict.p),
        seeds_text(verdict),
        verdict.reason,
    )


def seeds_text(verdict: Verdict) -> str:
    """The seeds of the claim's nets beside those planned: "3 of 10 planned, interim"."""
    counts = sorted(set((verdict.n or {}).values()))
    n = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    planned = "" if verdict.planned is None else f" of {verdict.planned} planned"
    return f"{n}{planned}{f', {verdict.progress}' if verdict.progress else ''}"


def signed(number: float) -> str:
    """With its sign and two decimals; what rounds to zero has none."""
    text = f"{number:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _markdown(group: Group, given: Numbers, verdicts: list[Verdict]) -> str:
    primary = [verdict for verdict in verdicts if verdict.primary]
    others = [verdict for verdict in verdicts if not verdict.primary]
    correlations = [
        f"{made[0]:+.2f} in {word} error ({made[1]} pairs of runs)"
        for word, quantity in (("training", TRAIN), ("test", TEST))
        if (made := twin_correlation(given, quantity))
    ]
    text = f"Seeds of plain nets and their twins correlate by {', '.join(correlations)}; verdicts"
    unpaired = [f"{text} do not treat them as pairs.", ""] if correlations else []
    lines = [
        f"# Verdicts on the paper's claims: {group.title}",
        "",
        f"{group.caption()}.",
        "",
        f"Primary claims: {tally(verdicts)}. How they are judged: docs/fidelity.md. Training "
        "errors are of the finished nets on the training images as they are, test errors final. "
        "The interval is each claim's own, about these images; with one seed of a net, or few "
        "wrong images, other images are in it too. p is adjusted over the primary claims.",
        "",
        tabulate([row(v) for v in primary], HEADERS, "github", disable_numparse=True),
        "",
        "Secondary claims, which speak of the same nets once more; nothing is counted.",
        "",
        tabulate([row(v) for v in others], HEADERS, "github", disable_numparse=True),
        "",
        *unpaired,
    ]
    return "\n".join(lines)
