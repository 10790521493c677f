"""Whatever the words on the command line are: one iteration is trained, or one line refuses them.

Hypothesis makes the words: sensible ones, with nonsense for some keys. Each configuration runs in
a process of its own, so that one that hangs, crashes or takes all memory fails here and not there.
"""

import json
import tempfile
from collections import Counter
from pathlib import Path

import survival
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from survival import PATIENCE, one_line_only

MEMORY = 10 << 30  # bytes of address space, most of which PyTorch's libraries take
SECONDS = PATIENCE / 3

# Words that train an iteration at once. Several keys are given at a time.
SENSIBLE = {
    "model": ["plain", "residual"],
    "depth": ["8", "14", "20"],
    "model.width": ["1", "2", "4", "8"],
    "seed": ["0", "1", "9223372036854775807"],
    "data.mean": ["pixel", "channel"],
    "data.split": ["test", "validation"],
    "recipe.batch_size": ["2", "16", "33", "64"],
    "recipe.learning_rate": ["1e-6", "0.02", "3", "1e30"],
    "recipe.momentum": ["0", "0.9"],
    "recipe.weight_decay": ["0", "1e-4", "0.9"],
    "recipe.drops": ["[]", "[0.5]", "[0.5,0.75]", "[1e-9,0.5]"],
    "recipe.padding": ["0", "1", "4"],
    "recipe.flip": ["true", "false"],
    "recipe.warm_up.depth": ["null", "8"],
    "recipe.warm_up.learning_rate": ["0.002"],
    "recipe.warm_up.until_error": ["80", "100", "1e-9"],
    "precision": ["float32", "bfloat16"],
    "deterministic": ["true", "false"],
    "evaluate_every": ["null", "1", "1000000000000"],
    "checkpoint_seconds": ["0", "60", "1e9", "inf"],
    "experiment": ["x", "a.b-c_d", "'a=1,b+2'"],
    "tag": ["null", "lr0.1", "'lr${recipe.learning_rate}'", "x" * 100],
}
OTHER_KEYS = [
    "model.name",
    "model.shortcut",
    "data",
    "data.name",
    "data.image_size",
    "recipe",
    "recipe.name",
    "recipe.iterations",
    "recipe.warm_up",
    "device",
    "threads",
    "compile",
    "outputs",
    "learning_rate",
    "model.depth",
    "depth.x",
    "nothing",
    "",
]
NONSENSE = [
    *("", "null", "true", "false", "-1", "0", "1", "1.5", "-0.5", "-0", "007", "0x10", "1_000"),
    *(
        "nan",
        "inf",
        "-inf",
        "1e400",
        "1e-400",
        "1e300",
        "1e9",
        "600000002",
        "9" * 30,
        "-" + "9" * 30,
    ),
    *("word", "A", "B", "'a b'", '"a b"', "'", '"', "a'b", "ü", "😀", "\u202e", "\u00a0", "\uff10"),
    *(
        "[]",
        "[1,2]",
        "[0.75,0.5]",
        "[nan]",
        "[null]",
        "[a]",
        "{}",
        "{a: 1}",
        "{depth: 8}",
        "[",
        "}",
    ),
    *("..", "../x", "a/b", "/", "/etc/passwd", "~", "~/x", ".", "-", "--help", "con", "*", "?"),
    *("${seed}", "${nothing}", "${oc.env:NOTHING}", "${oc.env:HOME}", "${", "$HOME", "???", "%s"),
    *("a,b", "0,1", "choice(1,2)", "range(3)", "a=b", "=", "a\nb", "a\tb", "\x1b[31m", " 8", "8 "),
    *("x" * 101, "x" * 300, "cuda", "cuda:7", "cuda:-1", "cpu", "tf32", "8", "20", "digits"),
    *("residual", "plain", "image_folder", "paper", "2147483648", "18446744073709551616"),
]
PREFIXES = ["", "", "", "", "", "+", "++", "~"]

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
nonsense = st.one_of(
    st.sampled_from(NONSENSE),
    st.sampled_from(NONSENSE),
    text,
    st.integers().map(str),
    st.floats().map(str),
)


@st.composite
def sensible_words(draw: st.DrawFn) -> list[str]:
    keys = draw(st.lists(st.sampled_from(sorted(SENSIBLE)), max_size=6, unique=True))
    return [f"{key}={draw(st.sampled_from(SENSIBLE[key]))}" for key in keys]


@st.composite
def strange_words(draw: st.DrawFn) -> list[str]:
    key = st.sampled_from([*SENSIBLE, *OTHER_KEYS])
    words = [
        f"{draw(st.sampled_from(PREFIXES))}{draw(key)}={draw(nonsense)}"
        for _ in range(draw(st.integers(1, 2)))
    ]
    return words + draw(st.lists(text, max_size=1)) if draw(st.integers(0, 5)) == 0 else words


def trains_for_long(word: str) -> object:
    """Whether a word asks for what may be had, but takes its time."""
    key, _, value = word.lstrip("+~").partition("=")
    if key == "compile":
        return value.strip().lower() in ("true", "yes", "on", "y") or set(value) & set("123456789")
    if key == "recipe.iterations":
        return any(digit.isdigit() for digit in value) and value.strip() not in ("0", "1", "-1")
    return (key, value) == ("recipe", "paper") or key == "hydra"


@settings(
    max_examples=survival.thorough(25, 1000),
    deadline=None,
    derandomize=not survival.SOAK,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(sensible_words(), st.one_of(st.just([]), strange_words(), strange_words()))
@example(["depth=14"], [])
@example(["recipe.learning_rate=1e30"], [])
@example([], ["recipe.learning_rate=1e300"])
@example([], ["depth=600000002"])
@example([], ["model.width=1000000000"])
@example([], ["recipe.batch_size=1000000000000"])
@example([], ["recipe.padding=1000000000"])
@example([], ["threads=1000000000"])
@example([], ["threads=2147483648"])
@example([], ["seed=18446744073709551616"])
@example([], ["outputs=a\nb", "depth=9"])
def test_a_configuration_trains_or_is_refused_with_a_line(
    sensible: list[str], strange: list[str]
) -> None:
    strange = [word for word in strange if not trains_for_long(word)]
    with tempfile.TemporaryDirectory(prefix="resrepro-configurations-") as name:
        folder = Path(name)
        words = ["data=digits", "recipe=digits", "recipe.iterations=1", "depth=8", "threads=1"]
        words += ["model.width=4", "recipe.batch_size=16", "device=cpu", "experiment=x"]
        told = {word.partition("=")[0] for word in sensible}
        words = [word for word in words if word.partition("=")[0] not in told]
        life = survival.the_nursery().start(
            ["train", *words, *sensible, *strange],
            limits={"RLIMIT_AS": MEMORY},
            folder=folder,
        )
        try:
            status = life.wait(SECONDS)
        except TimeoutError:
            survival.kill(life)
            raise AssertionError(f"still at it after {SECONDS:.0f} s") from None
        check(status, life, folder, bool(strange))


ends: Counter[int] = Counter()


def check(status: int, life: survival.Life, folder: Path, is_strange: bool) -> None:
    event(f"status {status}")
    ends[status] += 1
    if sum(ends.values()) % 100 == 0:
        survival.say(f"{sum(ends.values())} configurations, ends: {dict(ends)}")
    assert "Traceback" not in life.err
    if status == 0 and not life.out.startswith("resrepro train: trains"):
        (summary,) = (json.loads(f.read_text()) for f in folder.rglob("summary.json"))
        assert summary["status"] == "complete"
        assert summary["iteration"] == summary["iterations"] <= 1
        assert life.err == ""
    elif status == 1:
        assert one_line_only(life.err), life.err
        assert "the loss is not finite at iteration" in life.err
    elif status:
        assert status == 2, f"status {status}: {life.err}"
        assert one_line_only(life.err), life.err
        assert life.err.startswith("resrepro train: ")
        assert is_strange, life.err
