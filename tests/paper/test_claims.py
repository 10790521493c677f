import itertools
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from made_up import DIGITS, EXPERIMENT, PAPER, Nets, config, group, write, write_nets

from resrepro.configuration.schema import Recipe
from resrepro.errors import ResreproError
from resrepro.paper import claims
from resrepro.paper.claims import (
    HEADERS,
    RESPONSE,
    TEST,
    TRAIN,
    Asker,
    Numbers,
    numbers,
    questions,
    row,
    seeds_text,
    signed,
    tally,
    twin_correlation,
    write_claims,
)
from resrepro.paper.curves import collect
from resrepro.paper.verdicts import LEVEL, WORDS, Question, Verdict, judge
from resrepro.runs.run_directory import plan_seeds

ROOT = Path(__file__).parents[2]
FIDELITY = ROOT / "docs" / "fidelity.md"

# The first cell of each row of the tables in docs/fidelity.md, and the question it speaks of.
ROWS = {
    "deeper plain nets have a higher training error": "plain-train",
    "deeper residual nets do not have a higher training error": "residual-train",
    "deeper residual nets do not have a higher test error": "residual-test",
    "the deep residual net has a lower test error than its plain twin": "residual-beats-plain-deep",
    "deeper plain nets have a higher test error": "plain-test",
    "residual nets gain from depth": "residual-gain",
    "their advantage over plain nets grows with depth": "residual-beats-plain-more",
    "a deeper solution as good as the shallow one exists": "construction-exists",
    "SGD finds a worse one": "construction-sgd",
    "residual responses are smaller than plain ones": "responses-residual",
    "residual responses are smaller in deeper nets": "responses-residual-depth",
    "a residual net of 110 layers trains": "110-residual",
    "a plain net of 110 layers does not": "110-plain",
    "1,202 layers train as well as 110": "1202-train",
    "1,202 layers test worse than 110": "1202-test",
}
KEYS = list(ROWS.values())
PRIMARY = KEYS[:4]

# Each claim's nets with four numbers: runs that agree, runs of which the opposite is true, runs
# whose number lies nearer to the margin than their spread, and runs with too small a difference.
STEADY, SHAKY = (-0.01, 0.0, 0.01), (-0.6, 0.0, 0.7)
P20, P56, R20, R56 = ("plain", 20), ("plain", 56), ("residual", 20), ("residual", 56)
P110, R110, R1202 = ("plain", 110), ("residual", 110), ("residual", 1202)
TWELVE, NINE, THREE = (12.0,) * 4, (9.0,) * 4, (3.0,) * 4
CASES = {
    "plain-train": ("clean", {P56: (5.0, 1.2, 3.6, 3.1), P20: THREE}),
    "plain-test": ("test", {P56: (13.5, 8.0, 9.7, 9.2), P20: NINE}),
    "residual-train": ("clean", {R56: (2.0, 5.0, 3.6), R20: THREE}),
    "residual-test": ("test", {R56: (7.0, 12.0, 9.6), R20: NINE}),
    "residual-gain": ("test", {R56: (7.0, 12.0, 8.4, 9.1), R20: NINE}),
    "residual-beats-plain-deep": ("test", {P56: (14.0, 10.0, 12.6, 12.1), R56: TWELVE}),
    "residual-beats-plain-more": (
        "test",
        {P56: (15.0, 9.5, 9.6, 9.0), R56: NINE, P20: (12.0, 15.0, 12.0, 12.0), R20: TWELVE},
    ),
    "construction-sgd": ("clean", {P56: (5.0, 1.2, 3.6, 3.1), P20: THREE}),
    "responses-residual": ("response", {R56: (0.2, 0.9, 0.47, 0.5), P56: (0.5,) * 4}),
    "responses-residual-depth": ("response", {R56: (0.2, 0.9, 0.47, 0.5), R20: (0.5,) * 4}),
    "110-residual": ("clean", {R110: (0.9, 78.0, 44.5), P20: THREE}),
    "110-plain": ("clean", {P110: (85.0, 10.0, 45.5), P20: THREE}),
    "1202-train": ("clean", {R1202: (3.1, 5.0, 3.6), R110: THREE}),
    "1202-test": ("test", {R1202: (11.0, 7.0, 9.6, 9.2), R110: NINE}),
}


def asked(outputs: Path) -> dict[str, Question]:
    return {question.id: question for question in questions(numbers(group(outputs)))}


def judged(outputs: Path) -> dict[str, Verdict]:
    return {verdict.id: verdict for verdict in judge(questions(numbers(group(outputs))))}


def write_case(outputs: Path, key: str, case: int) -> None:
    quantity, levels = CASES[key]
    spread = SHAKY if case == 2 else STEADY
    scale = 0.2 if quantity == "response" else 1.0
    nets = {net: [v[case] + scale * s for s in spread] for net, v in levels.items()}
    write_nets(outputs, {net: {quantity: values} for net, values in nets.items()})
    if key == "construction-sgd":
        for seed, error in enumerate(nets[P20]):
            write(config(outputs, "plain", 56, seed, origin=20), train=error)


WORDS_OF_CASES = ("supported", "contradicted", "not decided", "no such effect")


@pytest.mark.parametrize(
    ("key", "case", "word"),
    [
        (key, case, word)
        for key, (_, nets) in CASES.items()
        for case, word in enumerate(WORDS_OF_CASES[: len(next(iter(nets.values())))])
    ],
)
def test_a_verdict_is_what_the_runs_say(tmp_path: Path, key: str, case: int, word: str) -> None:
    write_case(tmp_path, key, case)
    verdict = judged(tmp_path)[key]
    assert verdict.word == word, verdict
    assert set((verdict.n or {}).values()) == {3}
    assert (verdict.p is None) == (key not in PRIMARY)
    low, high = verdict.interval or (0, 0)
    assert verdict.difference is not None
    assert low < verdict.difference < high
    assert verdict.margin is not None
    assert (low < verdict.margin < high) == (case == 2)


@pytest.mark.parametrize(
    ("made", "word"),
    [
        ((1.0, 1.4, 0.8), "supported"),
        ((0.9, 1.4, 0.8), "supported"),
        ((1.0, 1.4, 0.806), "supported"),  # three images of CIFAR-10's, by rounding
        ((1.0, 1.4, 0.82), "contradicted"),
    ],
)
def test_the_constructed_net_may_be_worse_for_no_seed(
    tmp_path: Path, made: tuple[float, ...], word: str
) -> None:
    write_nets(tmp_path, {P20: {"clean": (1.0, 1.4, 0.8)}})
    for seed, error in enumerate(made):
        write(config(tmp_path, "plain", 56, seed, origin=20), train=error)
    verdict = judged(tmp_path)["construction-exists"]
    assert (verdict.word, verdict.p) == (word, None)
    assert verdict.difference == pytest.approx(max(0, made[2] - 0.8))
    assert verdict.interval is None
    assert list((verdict.n or {}).values()) == [3]


def test_every_claim_has_a_case_here() -> None:
    assert {*CASES, "construction-exists"} == set(KEYS)


WORLD: Nets = {
    P20: {"clean": (0.7, 0.8, 0.6), "test": (9.5, 9.7, 9.4), "response": (0.5, 0.52, 0.49)},
    P56: {"clean": (3.3, 3.5, 3.4), "test": (13.1, 13.5, 13.3), "response": (0.4, 0.41, 0.42)},
    P110: {"clean": (70.0, 71.0, 72.0), "test": (71.0, 75.0, 73.0), "response": (0.3, 0.3, 0.3)},
    R20: {"clean": (0.4, 0.5, 0.4), "test": (8.7, 8.8, 8.6), "response": (0.3, 0.31, 0.29)},
    R56: {"clean": (0.04, 0.05, 0.05), "test": (6.9, 7.0, 7.1), "response": (0.1, 0.11, 0.1)},
    R110: {"clean": (0.04, 0.03, 0.04), "test": (6.4, 6.6, 6.5), "response": (0.05, 0.05, 0.06)},
    R1202: {"clean": (0.04, 0.05, 0.04), "test": (7.9, 8.0, 7.8), "response": (0.05,) * 3},
}


def write_world(outputs: Path) -> None:
    """The paper's results, with three seeds of each net."""
    write_nets(outputs, WORLD)
    for seed in range(3):
        for depth in (56, 110):
            clean, test = (WORLD[P20][quantity][seed] for quantity in ("clean", "test"))
            write(config(outputs, "plain", depth, seed, origin=20), train=clean, test=test)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("world")
    write_world(outputs)
    return outputs


def test_the_papers_results_support_every_claim(world: Path) -> None:
    verdicts = judged(world)
    assert {key: v.word for key, v in verdicts.items()} == dict.fromkeys(KEYS, "supported")
    tested = {key: v.p for key, v in verdicts.items() if v.p is not None}
    assert list(tested) == PRIMARY
    assert [key for key, v in verdicts.items() if v.primary] == PRIMARY
    assert all(p < LEVEL for p in tested.values())


def test_the_opposite_of_the_papers_results_contradicts_every_claim(tmp_path: Path) -> None:
    turned = {P20: P56, P56: P20, R20: R56, R56: R20, P110: R110, R110: P110, R1202: R1202}
    nets = {net: dict(WORLD[turned[net]]) for net in WORLD}
    nets[R56] |= {"test": (40.0, 40.1, 40.2), "clean": (50.0, 51.0, 52.0)}
    nets[R20] |= {"test": (20.0, 20.1, 20.2)}
    nets[R56] |= {"response": (0.9, 0.91, 0.92)}
    nets[R1202] |= {"clean": (79.0, 78.0, 77.0), "test": (7.9, 8.0, 7.8)}
    write_nets(tmp_path, nets)
    for seed in range(3):
        write(config(tmp_path, "plain", 56, seed, origin=20), train=9.0 + 0.1 * seed)
    verdicts = judged(tmp_path)
    assert {key: v.word for key, v in verdicts.items()} == dict.fromkeys(KEYS, "contradicted")


def test_numbers_are_the_papers_differences(world: Path) -> None:
    values = {key: verdict.difference for key, verdict in judged(world).items()}
    assert values["plain-train"] == pytest.approx(3.4 - 0.7)
    assert values["plain-test"] == pytest.approx(13.3 - 28.6 / 3)
    assert values["residual-train"] == pytest.approx(0.14 / 3 - 1.3 / 3)
    assert values["residual-test"] == values["residual-gain"] == pytest.approx(7.0 - 8.7)
    assert values["residual-beats-plain-deep"] == pytest.approx(13.3 - 7.0)
    assert values["residual-beats-plain-more"] == pytest.approx(13.3 - 7.0 - 28.6 / 3 + 8.7)
    assert values["construction-exists"] == 0
    assert values["construction-sgd"] == pytest.approx(3.4 - 0.7)
    assert values["110-plain"] == pytest.approx(71)
    assert values["1202-test"] == pytest.approx(1.4)


def test_training_claims_are_judged_by_clean_errors(tmp_path: Path) -> None:
    quantities = {"train": (30.0, 31.0), "clean": (1.0, 1.1)}
    write_nets(tmp_path, {P20: quantities, P56: {"train": (30.0, 31.0), "clean": (5.0, 5.1)}})
    assert judged(tmp_path)["plain-train"].difference == pytest.approx(4)


def test_the_mean_response_is_that_of_the_layers_logarithms(tmp_path: Path) -> None:
    write(config(tmp_path, "residual", 8), responses=[1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 2.0])
    write(config(tmp_path, "residual", 14), responses=[0.5] * 13)
    verdict = judged(tmp_path)["responses-residual-depth"]
    assert verdict.difference == pytest.approx(-2 * 0.6931471806)
    assert verdict.unit == "log ratio"


def test_only_complete_runs_count(tmp_path: Path) -> None:
    write_nets(tmp_path, {P20: {"train": (1.0, 1.1)}, P56: {"train": (4.0, 4.1)}})
    for seed, status in enumerate(("running", "interrupted", "diverged", "failed"), start=2):
        write(config(tmp_path, "plain", 56, seed), train=0.0, status=status)
    verdict = judged(tmp_path)["plain-train"]
    assert verdict.n == {"plain-56": 2, "plain-20": 2}
    assert verdict.difference == pytest.approx(3)


def test_a_claim_whose_deep_net_is_not_complete_names_it(tmp_path: Path) -> None:
    write_nets(tmp_path, {P20: {"train": (1.0, 1.1)}})
    write(config(tmp_path, "plain", 56), status="running")
    verdict = judged(tmp_path)["plain-train"]
    assert (verdict.word, verdict.reason) == ("not decided", "needs plain-56")


@pytest.mark.parametrize(
    ("there_are", "pair"),
    [
        ((20, 56), (20, 56)),
        ((8, 20, 32, 44, 56, 110), (20, 56)),
        ((20, 32, 44), (20, 44)),
        ((32, 56, 110), (32, 56)),
        ((8, 14), (8, 14)),
        ((8, 14, 20), (8, 20)),
        ((14, 20, 26), (20, 26)),
        ((62, 80, 110), (62, 110)),
        ((20, 110), (20, 110)),
        # Of one net alone there is nothing to say but which one is missing.
        ((20,), (20, 56)),
        ((44,), (44, 56)),
        ((56,), (20, 56)),
        ((110,), (20, 110)),
        ((), (20, 56)),
    ],
)
def test_shallow_and_deep_are_20_and_56_or_what_there_is(
    tmp_path: Path, there_are: tuple[int, ...], pair: tuple[int, int]
) -> None:
    for depth in there_are:
        write(config(tmp_path, "plain", depth))
    write(config(tmp_path, "residual", 20))
    assert Asker(numbers(group(tmp_path))).depths("plain") == pair
    words = f"({pair[1]} against {pair[0]} layers)"
    question = asked(tmp_path)["plain-test"]
    assert words in question.statement
    assert len(question.terms) == (0 if len(there_are) < 2 else 2)
    missing = [f"plain-{depth}" for depth in reversed(pair) if depth not in there_are]
    assert list(question.missing) == missing


def test_families_are_compared_at_the_same_depth(tmp_path: Path) -> None:
    for depth in (20, 32):
        write(config(tmp_path, "plain", depth), response=0.5)
    for depth in (20, 56):
        write(config(tmp_path, "residual", depth), response=0.3)
    made = judged(tmp_path)
    assert made["residual-beats-plain-deep"].reason == "needs plain-56"
    assert made["responses-residual"].reason == "needs plain-56's responses"


def test_unmeasured_responses_are_named(tmp_path: Path) -> None:
    write(config(tmp_path, "residual", 20), response=0.3)
    write(config(tmp_path, "residual", 56))
    verdict = judged(tmp_path)["responses-residual-depth"]
    assert (verdict.word, verdict.reason) == ("not decided", "needs ResNet-56's responses")


def test_constructed_residual_nets_say_nothing_about_plain_ones(tmp_path: Path) -> None:
    write_nets(tmp_path, {P20: {"clean": (1.0, 1.1)}, R20: {"clean": (2.0, 2.0)}})
    write(config(tmp_path, "residual", 56, 0, origin=20), train=2.0)
    write(config(tmp_path, "plain", 20, 1), clean=1.1)
    made = judged(tmp_path)
    for key in ("construction-exists", "construction-sgd"):
        assert "plain-56 constructed from plain-20" in made[key].reason
    write(config(tmp_path, "plain", 56, 0, origin=20), train=1.0)
    verdict = judged(tmp_path)["construction-exists"]
    assert (verdict.word, verdict.difference) == ("supported", 0)
    assert list((verdict.n or {}).values()) == [1]


def test_a_constructed_net_is_held_against_the_net_of_its_own_seed(tmp_path: Path) -> None:
    write_nets(tmp_path, {P20: {"clean": (1.0, 3.0)}})
    write(config(tmp_path, "plain", 56, 0, origin=20), train=2.0)
    verdict = judged(tmp_path)["construction-exists"]
    assert (verdict.word, verdict.difference) == ("contradicted", 1)


def test_a_study_with_shallower_nets_constructs_from_those(tmp_path: Path) -> None:
    for depth, error in ((8, 3.0), (20, 1.0), (56, 5.0)):
        write_nets(tmp_path, {("plain", depth): {"clean": (error, error + 0.1)}})
    for seed in range(2):
        for depth in (20, 56):
            write(config(tmp_path, "plain", depth, seed, origin=8), train=3.0 + 0.1 * seed)
    made = judged(tmp_path)
    assert made["construction-exists"].word == "supported"
    assert "trained one of 8" in made["construction-exists"].statement
    assert made["construction-sgd"].difference == pytest.approx(2)


@pytest.mark.parametrize(("recipe", "assumed"), [(PAPER, 0.1), (DIGITS, 0.4)])
def test_the_spread_assumed_of_one_seed_depends_on_the_schedule(
    tmp_path: Path, recipe: Recipe, assumed: float
) -> None:
    for depth, error in ((20, 10.0), (56, 13.0)):
        write(config(tmp_path, "plain", depth, recipe=recipe), test=error, test_images=100)
    verdict = judged(tmp_path)["plain-test"]
    odds = (0.1 * 0.9, 0.13 * 0.87)
    half = 1.959964 * sum((assumed * 100 * pq) ** 2 + 1e4 * pq / 100 for pq in odds) ** 0.5
    assert verdict.interval == pytest.approx((3 - half, 3 + half), abs=1e-4)
    assert verdict.reason.endswith("one seed of plain-56, plain-20, the spread is assumed")


def test_nets_that_learned_nothing_decide_nothing_and_it_is_said(tmp_path: Path) -> None:
    near = {"clean": (89.0, 90.0), "test": (88.0, 89.0), "response": (1.0, 1.1)}
    far = {"clean": (97.0, 97.5), "test": (95.0, 95.5), "response": (0.1, 0.11)}
    write_nets(tmp_path, {P20: near, P56: far, R20: near, R56: near, P110: far})
    made = judged(tmp_path)
    reason = "nothing was learned: training errors of 90% and more, where guessing has 90%"
    assert {v.word for v in made.values()} == {"not decided"}
    assert made["plain-train"].reason == reason
    assert made["110-plain"].reason == reason


def test_one_net_that_learned_makes_degradation_of_others_a_finding(tmp_path: Path) -> None:
    write_nets(
        tmp_path,
        {P20: {"clean": (5.0, 5.2)}, P56: {"clean": (89.0, 88.0)}, P110: {"clean": (89.0, 90.0)}},
    )
    made = judged(tmp_path)
    assert made["plain-train"].word == "supported"
    assert made["110-plain"].word == "supported"


@pytest.mark.parametrize(("error", "learned"), [(80.9, True), (81.1, False)])
def test_near_guessing_is_nine_tenths_of_its_error(
    tmp_path: Path, error: float, learned: bool
) -> None:
    write_nets(tmp_path, {P20: {"clean": (error,)}, P56: {"clean": (88.0,)}})
    assert ("learned" not in judged(tmp_path)["plain-train"].reason) == learned


def test_every_family_is_judged_against_plain(world: Path) -> None:
    given = numbers(group(world))
    values = {
        quantity: nets | {("gated", depth): nets["residual", depth] for depth in (20, 56)}
        for quantity, nets in given.values.items()
    }
    made = {v.id: v for v in judge(questions(replace(given, values=values)))}
    new = {key: verdict for key, verdict in made.items() if key not in KEYS}
    assert list(new) == [
        "gated-train",
        "gated-test",
        "gated-beats-plain-deep",
        "gated-gain",
        "gated-beats-plain-more",
        "responses-gated",
        "responses-gated-depth",
    ]
    assert all(v.family == "gated" for v in new.values())
    assert [v.primary for v in new.values()] == [True] * 3 + [False] * 4
    assert made["gated-beats-plain-deep"].n == {"plain-56": 3, "gated-56": 3}
    assert new["gated-test"].statement.startswith("Deeper gated nets do not have a higher test")
    assert sum(v.primary for v in made.values()) == 7


def test_a_study_of_plain_nets_and_another_family_asks_nothing_of_residual_nets() -> None:
    values = {
        quantity: {(family, depth): {0: 5.0} for family in ("plain", "gated") for depth in (8, 14)}
        for quantity in (TRAIN, TEST, RESPONSE)
    }
    given = Numbers(values, {TRAIN: 100, TEST: 100}, 10, 0.3, {}, {})
    asked = questions(given)
    assert not [q for q in asked if q.family == "residual" and not re.match("110|1202", q.id)]


STRENGTH = {"not decided": 0, "indicated": 1} | dict.fromkeys(WORDS[:3], 2)


def with_seeds(given: Numbers, seeds: set[int]) -> Numbers:
    values = {
        quantity: {
            net: {seed: value for seed, value in of_net.items() if seed in seeds}
            for net, of_net in nets.items()
        }
        for quantity, nets in given.values.items()
    }
    return replace(given, values=values)


def is_weaker(fewer: Verdict, more: Verdict) -> bool:
    word = fewer.leaning or fewer.word
    same = word in ("not decided", more.leaning or more.word)
    return same and STRENGTH[fewer.word] <= STRENGTH[more.word]


def test_fewer_seeds_of_the_committed_digits_runs_only_weaken_words() -> None:
    (committed,) = collect(str(ROOT / "docs/results"), "digits")
    given = numbers(committed)
    seeds = sorted(given.values[TEST][P20])
    assert len(seeds) >= 3
    counts = [len(seeds), *(n for n in (3, 2, 1) if n < len(seeds))]
    made = [judge(questions(with_seeds(given, set(seeds[:n])))) for n in counts]
    for more, fewer in itertools.pairwise(made):
        for a, b in zip(more, fewer, strict=True):
            assert is_weaker(b, a), (b, a)
    assert {"supported", "not decided"} <= {v.word for v in made[0]}
    assert "indicated" in {v.word for v in made[-1]}


def test_of_the_first_three_committed_seeds_each_part_says_less() -> None:
    (committed,) = collect(str(ROOT / "docs/results"), "digits")
    given = numbers(committed)
    parts = [set(part) for n in (1, 2, 3) for part in itertools.combinations(range(3), n)]
    made = [
        {v.id: v for v in judge(questions(with_seeds(given, part))) if v.primary} for part in parts
    ]
    for (fewer, a), (more, b) in itertools.permutations(zip(parts, made, strict=True), 2):
        if fewer < more:
            assert all(is_weaker(a[key], b[key]) for key in PRIMARY), (fewer, more)


def test_seeds_of_twins_correlate_as_scipy_says() -> None:
    plain, residual = [5.0, 7.0, 6.0, 9.0], [4.0, 5.0, 4.2, 4.1]
    values = {("plain", 20): dict(enumerate(plain)), ("residual", 20): dict(enumerate(residual))}
    given = Numbers({TEST: values, TRAIN: {}, RESPONSE: {}}, {TEST: 10_000}, 10, 0.3, {}, {})

    def log_odds(percent: list[float]) -> np.ndarray:
        p = np.array(percent) / 100
        return np.asarray(np.log(p / (1 - p)))

    expected = np.corrcoef(log_odds(plain), log_odds(residual))[0, 1]
    assert twin_correlation(given, TEST) == (pytest.approx(expected), 4)
    alone = replace(given, values={TEST: {("plain", 20): values["plain", 20]}})
    assert twin_correlation(alone, TEST) is None


@pytest.mark.parametrize(
    ("planned", "text"),
    [
        (None, "3"),
        (3, "3 of 3 planned"),
        (5, "3 of 5 planned, interim"),
        (2, "3 of 2 planned, more than planned"),
    ],
)
def test_planned_seeds_stand_beside_those_there_are(
    tmp_path: Path, planned: int | None, text: str
) -> None:
    write_nets(tmp_path, {P20: {"test": (9.0, 9.1, 9.2)}, P56: {"test": (13.0, 13.1, 13.2)}})
    if planned:
        plan_seeds(tmp_path, planned)
        plan_seeds(tmp_path, 99)  # what was planned first stays
    verdict = {v.id: v for v in write_claims(group(tmp_path), tmp_path)}["plain-test"]
    assert (verdict.planned, seeds_text(verdict)) == (planned, text)
    assert f"| {text} " in (tmp_path / "claims.md").read_text()


@pytest.mark.parametrize("content", ["{", "[]", '{"seeds": 0}', '{"seeds": "many"}', "{}"])
def test_a_damaged_plan_is_named(tmp_path: Path, content: str) -> None:
    write(config(tmp_path, "plain", 20))
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(ResreproError, match=r"study\.json"):
        write_claims(group(tmp_path), tmp_path)


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert [signed(x) for x in (0.0, -0.0, -0.004, 0.004, -0.006, 1.5)] == [
        *["0.00"] * 4,
        "-0.01",
        "+1.50",
    ]


def test_only_primary_claims_are_counted_and_one_seed_says_for_or_against(tmp_path: Path) -> None:
    nets = {P20: 2.0, P56: 40.0, R20: 2.0, R56: 39.0}
    write_nets(tmp_path, {net: {"clean": (e,), "test": (e + 2,)} for net, e in nets.items()})
    said = tally(list(judged(tmp_path).values()))
    assert said == "1 not decided, 1 indicated, 2 indicated against"


@pytest.mark.parametrize(("data", "margin"), [("cifar10", 45), ("cifar100", 49.5)])
def test_half_the_error_of_guessing_depends_on_the_classes(
    tmp_path: Path, data: str, margin: float
) -> None:
    write(config(tmp_path, "plain", 110, data=data))
    for key in ("110-plain", "110-residual"):
        assert asked(tmp_path)[key].margin == pytest.approx(margin)


def test_the_files_say_the_same_as_the_verdicts(world: Path) -> None:
    returned = write_claims(group(world), world)
    read = json.loads((world / "claims.json").read_text())
    assert [entry["id"] for entry in read] == KEYS == [verdict.id for verdict in returned]
    for entry, verdict in zip(read, returned, strict=True):
        interval = list(verdict.interval) if verdict.interval else None
        assert entry == {**asdict(verdict), "interval": interval}
    text = (world / "claims.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    shown = [line for line in cells if not line[0].startswith("--")]
    rows = [row(verdict) for verdict in returned]
    assert shown == [HEADERS, *rows[:4], HEADERS, *rows[4:]]
    assert text.startswith(f"# Verdicts on the paper's claims: {EXPERIMENT}\n")
    assert "Primary claims: 4 supported. " in text
    assert group(world).caption() in text
    assert "pairs of runs); verdicts do not treat them as pairs" in text


def test_a_row_shows_the_numbers_of_its_verdict(world: Path) -> None:
    for verdict in judged(world).values():
        cells = row(verdict)
        assert (cells[0], cells[1], cells[6:]) == (
            verdict.word,
            verdict.statement,
            ("3", verdict.reason),
        )
        numbers = [float(n) for n in re.findall(r"[-+]?\d+\.\d+", "".join(cells[2:4]))]
        assert numbers == pytest.approx(
            [verdict.difference, *(verdict.interval or ())], abs=0.00501
        )


def test_undecided_claims_are_in_the_files_with_what_they_need(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 20))
    write_claims(group(tmp_path), tmp_path)
    read = {entry["id"]: entry for entry in json.loads((tmp_path / "claims.json").read_text())}
    assert list(read) == KEYS
    assert read["plain-train"]["word"] == "not decided"
    assert read["plain-train"]["reason"] == "needs plain-56"
    text = (tmp_path / "claims.md").read_text()
    assert "Primary claims: 4 not decided. " in text
    assert text.count("needs ") == len(KEYS)


def test_a_tag_has_files_of_its_own(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 20, tag="warm"))
    write_claims(group(tmp_path), tmp_path)
    assert (tmp_path / "claims-warm.json").exists()
    assert (tmp_path / "claims-warm.md").exists()


@pytest.fixture(scope="module")
def documented() -> dict[str, list[str]]:
    """The claims in docs/fidelity.md: when they are supported, and what is the opposite."""
    section = FIDELITY.read_text().split("## How claims are judged")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[2:] for row in rows if len(row) == 4 and row[0] != "claim"}


def test_the_document_has_a_row_for_each_question(
    documented: dict[str, list[str]], world: Path
) -> None:
    assert [claim for claim in documented if not claim.startswith("--")] == list(ROWS)
    assert list(asked(world)) == KEYS


@pytest.mark.parametrize("claim", ROWS)
def test_the_documents_margins_are_the_codes(
    documented: dict[str, list[str]], world: Path, claim: str
) -> None:
    question, (supported, opposite) = asked(world)[ROWS[claim]], documented[claim]
    if half := re.fullmatch(r"(above|below) half the error of guessing", supported):
        assert (question.above, question.margin) == (half[1] == "above", 45)
        assert question.opposite == question.margin
        return
    written = re.match(r"D ([<>≤]) (-?[\d.]+)", supported)
    assert written, supported
    assert question.above == (written[1] == ">")
    assert question.margin == float(written[2])
    assert question.certain == (written[1] == "≤")
    other = re.fullmatch(r"D ([<>]) (-?[\d.]+)", opposite)
    assert other, opposite
    assert (other[1] == "<") == question.above
    assert question.opposite == float(other[2])


def test_the_documents_assumptions_are_the_codes() -> None:
    text = " ".join(FIDELITY.read_text().split("## How claims are judged")[1].split())
    assert f"{claims.ASSUMED} after the paper's number of iterations" in text
    assert f"{claims.ASSUMED_SHORT} after fewer" in text
    assert f"for responses {claims.ASSUMED_RESPONSE}" in text
    assert f"at least {claims.NEAR_GUESSING} of guessing's" in text
    assert f"p is below {LEVEL}" in text
    assert "20 and 56 layers where they are there" in text
    assert "up to 56 layers" in text
