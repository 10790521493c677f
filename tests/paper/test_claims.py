import json
import re
from pathlib import Path

import pytest
from made_up import EXPERIMENT, Nets, config, group, write, write_nets

from resrepro.paper.claims import (
    HEADERS,
    RESPONSE_DEVIATION,
    SEED_DEVIATION,
    Asker,
    estimate,
    questions,
    write_claims,
)
from resrepro.paper.verdicts import LEVEL, Question, Verdict, judge

FIDELITY = Path(__file__).parents[2] / "docs" / "fidelity.md"

# The first cell of each row of the table in docs/fidelity.md, and the questions it speaks of.
ROWS = {
    "deeper plain nets have a higher training error": ["plain-train"],
    "deeper plain nets have a higher test error": ["plain-test"],
    "deeper residual nets do not have a higher training error": ["residual-train"],
    "deeper residual nets do not have a higher test error": ["residual-test"],
    "residual nets beat plain nets of the same depth (for the shallow and for the deep pair)": [
        "residual-beats-plain-shallow",
        "residual-beats-plain-deep",
    ],
    "the more so the deeper": ["residual-beats-plain-more"],
    "a deeper solution as good as the shallow one exists": ["construction-exists"],
    "SGD finds a worse one": ["construction-sgd"],
    "residual responses are smaller than plain ones": ["responses-residual"],
    "residual responses are smaller in deeper nets": ["responses-depth"],
    "a residual net of 110 layers trains": ["110-residual"],
    "a plain net of 110 layers does not": ["110-plain"],
}
KEYS = [key for keys in ROWS.values() for key in keys]

# Each claim's nets with three numbers: runs that agree, runs that contradict it, and runs whose
# number lies on the claim's side of the margin, but nearer to it than their spread.
STEADY, SHAKY = (-0.1, 0.0, 0.1), (-1.0, 0.0, 1.0)
P20, P56, R20, R56 = ("plain", 20), ("plain", 56), ("residual", 20), ("residual", 56)
P110, R110 = ("plain", 110), ("residual", 110)
CASES = {
    "plain-train": ("train", {P56: (4.0, 1.2, 1.7), P20: (1.0, 1.0, 1.0)}),
    "plain-test": ("test", {P56: (13.5, 9.0, 10.2), P20: (9.5, 9.5, 9.5)}),
    "residual-train": ("train", {R56: (0.4, 2.0, 0.7), R20: (1.0, 1.0, 1.0)}),
    "residual-test": ("test", {R56: (7.0, 9.9, 9.0), R20: (8.8, 8.8, 8.8)}),
    "residual-beats-plain-shallow": ("test", {P20: (9.9, 8.9, 9.5), R20: (8.8, 8.8, 8.8)}),
    "residual-beats-plain-deep": ("test", {P56: (13.5, 6.0, 7.7), R56: (7.0, 7.0, 7.0)}),
    "residual-beats-plain-more": (
        "test",
        {P56: (13.5, 9.0, 9.5), R56: (7.0, 7.0, 7.0), P20: (9.5, 12.5, 10.5), R20: (8.8,) * 3},
    ),
    "construction-sgd": ("clean", {P56: (4.0, 0.9, 1.7), P20: (1.0, 1.0, 1.0)}),
    "responses-residual": ("response", {R56: (0.2, 0.6, 0.45), P56: (0.5, 0.5, 0.5)}),
    "responses-depth": ("response", {R56: (0.2, 0.6, 0.45), R20: (0.5, 0.5, 0.5)}),
    "110-residual": ("train", {R110: (0.5, 88.0, 44.5)}),
    "110-plain": ("train", {P110: (85.0, 10.0, 45.5)}),
}


def asked(outputs: Path) -> dict[str, Question]:
    return {question.key: question for question in questions(group(outputs))}


def judged(outputs: Path) -> dict[str, Verdict]:
    return {verdict.key: verdict for verdict in judge(questions(group(outputs)))}


def write_case(outputs: Path, key: str, case: int) -> None:
    quantity, levels = CASES[key]
    spread = SHAKY if case == 2 else STEADY
    if quantity == "response":  # the spread of a logarithm
        nets = {net: [v[case] * (1 + 0.1 * s) for s in spread] for net, v in levels.items()}
    else:
        nets = {net: [v[case] + s for s in spread] for net, v in levels.items()}
    write_nets(outputs, {net: {quantity: values} for net, values in nets.items()})
    if key == "construction-sgd":
        for seed, error in enumerate(nets[P20]):
            write(config(outputs, "plain", 56, seed, origin=20), train=error)


@pytest.mark.parametrize("key", CASES)
@pytest.mark.parametrize(
    ("case", "word"), [(0, "supported"), (1, "contradicted"), (2, "not decided")]
)
def test_a_verdict_is_what_the_runs_say(tmp_path: Path, key: str, case: int, word: str) -> None:
    write_case(tmp_path, key, case)
    verdict = judged(tmp_path)[key]
    assert verdict.verdict == word, verdict
    assert set((verdict.n or {}).values()) == {3}
    question = asked(tmp_path)[key]
    low, high = verdict.interval or (0, 0)
    assert low < verdict.value < high
    if case == 2:
        assert question.agrees(verdict.value or 0)
        assert low < question.margin < high
        assert "seeds a net would decide" in verdict.why


@pytest.mark.parametrize(
    ("made", "word"),
    [
        ((1.0, 1.4, 0.8), "supported"),
        ((0.9, 1.4, 0.8), "supported"),
        ((1.0, 1.4, 0.81), "contradicted"),
    ],
)
def test_the_constructed_net_may_be_worse_for_no_seed(
    tmp_path: Path, made: tuple[float, ...], word: str
) -> None:
    write_nets(tmp_path, {P20: {"clean": (1.0, 1.4, 0.8)}})
    for seed, error in enumerate(made):
        write(config(tmp_path, "plain", 56, seed, origin=20), train=error)
    verdict = judged(tmp_path)["construction-exists"]
    assert (verdict.verdict, verdict.p_adjusted) == (word, None)
    assert verdict.value == pytest.approx(max(0, made[2] - 0.8))
    assert list((verdict.n or {}).values()) == [3]


def test_every_claim_has_a_case_here() -> None:
    assert {*CASES, "construction-exists"} == set(KEYS)


WORLD: Nets = {
    P20: {"train": (0.7, 0.8, 0.6), "test": (9.5, 9.7, 9.4), "response": (0.5, 0.52, 0.49)},
    P56: {"train": (3.3, 3.5, 3.4), "test": (13.1, 13.5, 13.3), "response": (0.4, 0.41, 0.42)},
    P110: {"train": (70.0, 75.0, 72.0), "test": (71.0, 75.0, 73.0), "response": (0.3, 0.3, 0.3)},
    R20: {"train": (0.4, 0.5, 0.4), "test": (8.7, 8.8, 8.6), "response": (0.3, 0.31, 0.29)},
    R56: {"train": (0.0, 0.1, 0.0), "test": (6.9, 7.0, 7.1), "response": (0.1, 0.11, 0.1)},
    R110: {"train": (0.0, 0.0, 0.1), "test": (6.4, 6.6, 6.5), "response": (0.05, 0.05, 0.06)},
}


def write_world(outputs: Path) -> None:
    """The paper's results, with three seeds of each net."""
    write_nets(outputs, WORLD)
    for seed in range(3):
        for depth in (56, 110):
            errors = {quantity: WORLD[P20][quantity][seed] for quantity in ("train", "test")}
            write(config(outputs, "plain", depth, seed, origin=20), **errors)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("world")
    write_world(outputs)
    return outputs


def test_the_papers_results_support_every_claim(world: Path) -> None:
    verdicts = judged(world)
    assert {key: v.verdict for key, v in verdicts.items()} == dict.fromkeys(KEYS, "supported")
    tested = [v for v in verdicts.values() if v.p_adjusted is not None]
    assert len(tested) == len(KEYS) - 1
    assert all((v.p_adjusted or 0) < LEVEL for v in tested)


def test_the_opposite_of_the_papers_results_contradicts_every_claim(tmp_path: Path) -> None:
    turned = {P20: P56, P56: P20, R20: R56, R56: R20, P110: R110, R110: P110}
    nets = {net: dict(WORLD[turned[net]]) for net in WORLD}
    nets[R56] |= {"test": (40.0, 40.1, 40.2), "train": (50.0, 51.0, 52.0)}
    nets[R20] |= {"test": (20.0, 20.1, 20.2)}
    nets[R56] |= {"response": (0.9, 0.91, 0.92)}
    write_nets(tmp_path, nets)
    for seed in range(3):
        write(config(tmp_path, "plain", 56, seed, origin=20), train=9.0 + 0.1 * seed)
    verdicts = judged(tmp_path)
    assert {key: v.verdict for key, v in verdicts.items()} == dict.fromkeys(KEYS, "contradicted")


def test_numbers_are_the_papers_differences(world: Path) -> None:
    values = {key: verdict.value for key, verdict in judged(world).items()}
    assert values["plain-train"] == pytest.approx(3.4 - 0.7)
    assert values["plain-test"] == pytest.approx(13.3 - 28.6 / 3)
    assert values["residual-train"] == pytest.approx(0.1 / 3 - 1.3 / 3)
    assert values["residual-test"] == pytest.approx(7.0 - 8.7)
    assert values["residual-beats-plain-shallow"] == pytest.approx(28.6 / 3 - 8.7)
    assert values["residual-beats-plain-deep"] == pytest.approx(13.3 - 7.0)
    assert values["residual-beats-plain-more"] == pytest.approx(13.3 - 7.0 - 28.6 / 3 + 8.7)
    assert values["construction-exists"] == 0
    assert values["construction-sgd"] == pytest.approx(3.4 - 0.7)
    assert values["110-plain"] == pytest.approx(217 / 3)


def test_the_mean_response_is_that_of_the_layers_logarithms(tmp_path: Path) -> None:
    write(config(tmp_path, "residual", 8), responses=[1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 2.0])
    write(config(tmp_path, "residual", 14), responses=[0.5] * 13)
    verdict = judged(tmp_path)["responses-depth"]
    assert verdict.value == pytest.approx(-2 * 0.6931471806)
    assert verdict.unit == "log ratio"


def test_only_complete_runs_count(tmp_path: Path) -> None:
    write_nets(tmp_path, {P20: {"train": (1.0, 1.1)}, P56: {"train": (4.0, 4.1)}})
    for seed, status in enumerate(("running", "interrupted", "diverged", "failed"), start=2):
        write(config(tmp_path, "plain", 56, seed), train=0.0, status=status)
    verdict = judged(tmp_path)["plain-train"]
    assert verdict.n == {"plain-56": 2, "plain-20": 2}
    assert verdict.value == pytest.approx(3)


def test_a_claim_whose_deep_net_is_not_complete_names_it(tmp_path: Path) -> None:
    write_nets(tmp_path, {P20: {"train": (1.0, 1.1)}})
    write(config(tmp_path, "plain", 56), status="running")
    verdict = judged(tmp_path)["plain-train"]
    assert (verdict.verdict, verdict.why) == ("not decided", "needs plain-56")


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
    assert Asker(group(tmp_path)).depths("plain") == pair
    words = f"({pair[1]} against {pair[0]} layers)"
    question = asked(tmp_path)["plain-test"]
    assert words in question.claim
    assert len(question.terms) == (0 if len(there_are) < 2 else 2)
    missing = [f"plain-{depth}" for depth in reversed(pair) if depth not in there_are]
    assert list(question.missing) == missing


def test_families_are_compared_at_the_same_depth(tmp_path: Path) -> None:
    for depth in (20, 32):
        write(config(tmp_path, "plain", depth), response=0.5)
    for depth in (20, 56):
        write(config(tmp_path, "residual", depth), response=0.3)
    made = judged(tmp_path)
    assert made["residual-beats-plain-deep"].why == "needs plain-56"
    assert made["responses-residual"].why == "needs plain-56's responses"
    assert made["residual-beats-plain-shallow"].n == {"plain-20": 1, "ResNet-20": 1}


def test_unmeasured_responses_are_named(tmp_path: Path) -> None:
    write(config(tmp_path, "residual", 20), response=0.3)
    write(config(tmp_path, "residual", 56))
    verdict = judged(tmp_path)["responses-depth"]
    assert (verdict.verdict, verdict.why) == ("not decided", "needs ResNet-56's responses")


def test_constructed_residual_nets_say_nothing_about_plain_ones(tmp_path: Path) -> None:
    write_nets(tmp_path, {P20: {"clean": (1.0, 1.1)}, R20: {"clean": (2.0, 2.0)}})
    write(config(tmp_path, "residual", 56, 0, origin=20), train=2.0)
    write(config(tmp_path, "plain", 20, 1), clean=1.1)
    made = judged(tmp_path)
    for key in ("construction-exists", "construction-sgd"):
        assert "plain-56 constructed from plain-20" in made[key].why
    write(config(tmp_path, "plain", 56, 0, origin=20), train=1.0)
    verdict = judged(tmp_path)["construction-exists"]
    assert (verdict.verdict, verdict.value) == ("supported", 0)
    assert list((verdict.n or {}).values()) == [1]


def test_a_constructed_net_is_held_against_the_net_of_its_own_seed(tmp_path: Path) -> None:
    write_nets(tmp_path, {P20: {"clean": (1.0, 3.0)}})
    write(config(tmp_path, "plain", 56, 0, origin=20), train=2.0)
    verdict = judged(tmp_path)["construction-exists"]
    assert (verdict.verdict, verdict.value) == ("contradicted", 1)


def test_a_study_with_shallower_nets_constructs_from_those(tmp_path: Path) -> None:
    for depth, error in ((8, 3.0), (20, 1.0), (56, 5.0)):
        write_nets(tmp_path, {("plain", depth): {"clean": (error, error + 0.1)}})
    for seed in range(2):
        for depth in (20, 56):
            write(config(tmp_path, "plain", depth, seed, origin=8), train=3.0 + 0.1 * seed)
    made = judged(tmp_path)
    assert made["construction-exists"].verdict == "supported"
    assert "trained one of 8" in made["construction-exists"].claim
    assert made["construction-sgd"].value == pytest.approx(2)


def test_the_spread_of_several_seeds_is_measured(tmp_path: Path) -> None:
    write_nets(tmp_path, {P20: {"test": (9.0, 10.0, 11.0)}})
    made = estimate(group(tmp_path).nets[0].runs, "final_test_error")
    assert (made.value, made.spread, made.n, made.assumed) == (10, 1, 3, False)
    assert made.variance() == pytest.approx(1 / 3)
    assert made.freedom() == 2


@pytest.mark.parametrize(
    ("quantity", "error", "images"),
    [
        ("final_test_error", 12.0, 10_000),
        ("clean_train_error", 4.0, 50_000),
        # Rows are 16,000 iterations apart: the running error is of the batches between two.
        ("final_train_error", 3.0, 16_000 * 128),
    ],
)
def test_one_seed_has_the_assumed_spread_and_its_images_sampling_error(
    tmp_path: Path, quantity: str, error: float, images: int
) -> None:
    write(config(tmp_path, "plain", 20), test=12.0, clean=4.0, train=3.0)
    made = estimate(group(tmp_path).nets[0].runs, quantity)
    p = error / 100
    assert made.assumed
    assert made.spread == pytest.approx(SEED_DEVIATION**2 + 1e4 * p * (1 - p) / images, rel=1e-9)


def test_few_test_images_widen_the_interval_of_one_seed(tmp_path: Path) -> None:
    for depth, error in ((20, 10.0), (56, 13.0)):
        write(config(tmp_path, "plain", depth), test=error, test_images=100)
    verdict = judged(tmp_path)["plain-test"]
    sampling = 1e4 * (0.1 * 0.9 + 0.13 * 0.87) / 100
    half = 1.959964 * (2 * 0.36 + sampling) ** 0.5
    assert verdict.interval == pytest.approx((3 - half, 3 + half), abs=1e-4)
    assert verdict.why.endswith("one seed only of plain-56, plain-20, its spread is assumed")


def test_one_seeds_response_has_the_assumed_spread(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 20), response=0.5)
    made = estimate(group(tmp_path).nets[0].runs, "mean_log_response")
    assert (made.spread, made.n, made.assumed) == (RESPONSE_DEVIATION**2, 1, True)


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
    assert [entry["key"] for entry in read] == KEYS == [verdict.key for verdict in returned]
    for entry, verdict in zip(read, returned, strict=True):
        assert entry["verdict"] == verdict.verdict
        assert entry["value"] == verdict.value
        assert entry["interval"] == list(verdict.interval or ())
        assert entry["n"] == verdict.n
        assert entry["p_adjusted"] == verdict.p_adjusted
        assert entry["margin"] == verdict.margin
        assert entry["why"] == verdict.why
    text = (world / "claims.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert tuple(header) == HEADERS
    for cells, verdict in zip(rows, returned, strict=True):
        assert (cells[0], cells[1], cells[7]) == (verdict.verdict, verdict.claim, verdict.why)
        number, low, high = (float(n) for n in re.findall(r"[-+]\d+\.\d+", "".join(cells[2:4])))
        low_bound, high_bound = verdict.interval or (0, 0)
        assert (number, low, high) == pytest.approx(
            (verdict.value, low_bound, high_bound), abs=0.00501
        )
        assert cells[6] == "3"
    assert text.startswith(f"# Verdicts on the paper's claims: {EXPERIMENT}\n")
    assert "13 supported, 0 contradicted, 0 not decided" in text
    assert group(world).caption in text


def test_undecided_claims_are_in_the_files_with_what_they_need(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 20))
    write_claims(group(tmp_path), tmp_path)
    read = {entry["key"]: entry for entry in json.loads((tmp_path / "claims.json").read_text())}
    assert list(read) == KEYS
    assert read["plain-train"]["verdict"] == "not decided"
    assert read["plain-train"]["why"] == "needs plain-56"
    text = (tmp_path / "claims.md").read_text()
    assert "0 supported, 0 contradicted, 13 not decided" in text
    assert text.count("needs ") == 13


def test_a_tag_has_files_of_its_own(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 20, tag="warm"))
    write_claims(group(tmp_path), tmp_path)
    assert (tmp_path / "claims-warm.json").exists()
    assert (tmp_path / "claims-warm.md").exists()


@pytest.fixture(scope="module")
def world_questions(world: Path) -> dict[str, Question]:
    return asked(world)


@pytest.fixture(scope="module")
def documented() -> dict[str, str]:
    """The claims in docs/fidelity.md: what counts as supported, by the claim."""
    section = FIDELITY.read_text().split("## How claims are judged")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert header == ["claim", "D", "counts as supported if"]
    return {claim: rule for claim, _, rule in rows}


def test_the_document_has_a_row_for_each_question(
    documented: dict[str, str], world_questions: dict[str, Question]
) -> None:
    assert list(documented) == list(ROWS)
    assert list(world_questions) == KEYS


@pytest.mark.parametrize("claim", ROWS)
def test_the_documents_margins_are_the_codes(
    documented: dict[str, str], world_questions: dict[str, Question], claim: str
) -> None:
    rule = documented[claim]
    for key in ROWS[claim]:
        question = world_questions[key]
        if half := re.fullmatch(r"(above|below) half the error of guessing", rule):
            assert (question.above, question.margin) == (half[1] == "above", 45)
        else:
            written = re.match(r"D ([<>≤]) (-?[\d.]+)", rule)
            assert written, rule
            assert question.above == (written[1] == ">")
            assert question.margin == float(written[2])
            assert question.certain == (written[1] == "≤")


def test_the_documents_assumptions_are_the_codes() -> None:
    text = " ".join(FIDELITY.read_text().split("## How claims are judged")[1].split())
    assert f"it is taken to be {SEED_DEVIATION} points" in text
    assert f"For responses {RESPONSE_DEVIATION} is taken" in text
    assert f"Below {LEVEL} the claim is" in text
    assert "20 and 56 layers where they are there" in text
    assert "up to 56 layers" in text
