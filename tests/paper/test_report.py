import html
import itertools
import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote

import pytest
from made_up import DIGITS, EXPERIMENT, PAPER, config, write, write_nets

from resrepro.configuration.composition import expand, parse
from resrepro.configuration.schema import Config, Data, Optimizer, Recipe, WarmUp, config_hash
from resrepro.paper.artefacts import make_artefacts
from resrepro.paper.claims import numbers, questions, seeds_text, signed, tally
from resrepro.paper.curves import collect
from resrepro.paper.report import answer, bar, commands
from resrepro.paper.table import filled, notes, rows
from resrepro.paper.verdicts import Verdict, judge
from resrepro.runs.run_directory import RunDirectory

VOID = {"meta", "br", "link", "img", "input", "hr"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: "Element | None" = None
    content: list["Element | str"] = field(default_factory=list)

    @property
    def children(self) -> list["Element"]:
        return [part for part in self.content if isinstance(part, Element)]

    @property
    def texts(self) -> list[str]:
        return [part for part in self.content if isinstance(part, str)]

    def find(self, tag: str) -> list["Element"]:
        found = [self] if self.tag == tag else []
        return found + [hit for child in self.children for hit in child.find(tag)]

    def every(self) -> list["Element"]:
        return [self, *(hit for child in self.children for hit in child.every())]

    @property
    def text(self) -> str:
        """All text within, its white space put together."""
        return " ".join(" ".join(self._texts()).split())

    def _texts(self) -> list[str]:
        return [
            text
            for part in self.content
            for text in ([part] if isinstance(part, str) else part._texts())
        ]


class Reader(HTMLParser):
    """Reads a page as a tree; an end tag that closes nothing is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.root = self.now = Element("", {})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"{tag} has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs}, self.now)
        self.now.content.append(element)
        if tag not in VOID:
            self.now = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.now.tag == tag, f"</{tag}> closes <{self.now.tag}>"
        assert self.now.parent
        self.now = self.now.parent

    def handle_data(self, data: str) -> None:
        self.now.content.append(data)


def read(page: str) -> Element:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.now is reader.root, f"<{reader.now.tag}> is not closed"
    return reader.root


def make_page(outputs: Path) -> Path:
    list(make_artefacts(str(outputs), EXPERIMENT, ["report"]))
    return outputs / EXPERIMENT / "report.html"


def write_study(outputs: Path, tag: str | None = None) -> None:
    """Six nets of two seeds, constructed solutions and a run that goes on."""
    errors = {
        ("plain", 20): (0.7, 9.5, 0.5),
        ("plain", 32): (0.9, 10.1, 0.45),
        ("plain", 56): (3.3, 13.3, 0.4),
        ("residual", 20): (0.4, 8.7, 0.3),
        ("residual", 32): (0.1, 7.6, 0.2),
        ("residual", 56): (0.0, 7.0, 0.1),
    }
    nets = {
        net: {
            "train": (train, round(train + 0.2, 1)),
            "test": (test, round(test + 0.3, 1)),
            "response": (response, 1.1 * response),
        }
        for net, (train, test, response) in errors.items()
    }
    write_nets(outputs, nets, data="digits", recipe=DIGITS, tag=tag)
    keys = {"data": "digits", "recipe": DIGITS, "tag": tag}
    for depth in (32, 56):
        for seed, (train, test) in enumerate(((0.7, 9.5), (0.9, 9.8))):
            made = config(outputs, "plain", depth, seed, origin=20, **keys)
            write(made, train=train, test=test)
    write(config(outputs, "residual", 56, 2, **keys), status="running")


HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"&amp;"


# Long, with nowhere to break the line.
TAG = f"lr=0.05,x{'0' * 70}"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with two tags, and its page."""
    outputs = tmp_path_factory.mktemp("study")
    write_study(outputs)
    write_study(outputs, tag=TAG)
    made = config(outputs, "plain", 44, data="digits", recipe=DIGITS)
    write(made, status="failed", host=HOSTILE, reason=HOSTILE, device=HOSTILE)
    make_page(outputs)
    return outputs


@pytest.fixture(scope="module")
def page(study: Path) -> Element:
    return read((study / EXPERIMENT / "report.html").read_text())


def test_the_page_loads_nothing(study: Path, page: Element) -> None:
    assert not page.find("link")
    assert not page.find("iframe")
    assert not page.find("base")
    for element in page.every():
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert element.attributes.get(name, "#").startswith("#"), (element.tag, name)
        for value in (
            element.attributes.get("style", ""),
            *element.texts * (element.tag == "style"),
        ):
            assert not re.search(r"@import|url\((?!#)", value)
    (script,) = page.find("script")
    assert not script.attributes
    assert not re.search(r"fetch|XMLHttp|import|http|WebSocket", "".join(script.texts))
    assert list((study / EXPERIMENT).glob("report*")) == [study / EXPERIMENT / "report.html"]


def test_the_page_has_a_language_a_title_and_one_first_heading(page: Element) -> None:
    (root,) = page.find("html")
    assert root.attributes == {"lang": "en"}
    (title,) = root.find("head")[0].find("title")
    assert title.text == f"resrepro: {EXPERIMENT}"
    (meta,) = (m for m in page.find("meta") if m.attributes.get("name") == "viewport")
    assert "width=device-width" in meta.attributes["content"]
    assert "user-scalable" not in meta.attributes["content"]
    levels = [int(e.tag[1]) for e in page.every() if re.fullmatch(r"h[1-6]", e.tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert len(page.find("main")) == 1


def test_every_id_is_there_once_and_every_reference_has_its_id(page: Element) -> None:
    ids = Counter(e.attributes["id"] for e in page.every() if "id" in e.attributes)
    assert max(ids.values()) == 1, ids.most_common(3)
    assert not any(re.search(r"\s", name) for name in ids)
    pointed = set()
    for element in page.every():
        for name, value in element.attributes.items():
            if name in ("href", "xlink:href"):
                pointed.add(unquote(value.removeprefix("#")))
            elif name in ("aria-labelledby", "aria-describedby", "for"):
                pointed |= set(value.split())
            else:
                pointed |= set(re.findall(r"url\(#([^)]+)\)", value))
    assert len(pointed) > 20
    assert pointed <= set(ids)


def test_every_table_can_be_read_out(page: Element) -> None:
    tables = page.find("table")
    assert len(tables) == 5
    for table in tables:
        (caption,) = table.find("caption")
        assert caption.text
        (head,), (body,) = table.find("thead"), table.find("tbody")
        columns = head.find("th")
        assert not head.find("td")
        assert {th.attributes.get("scope") for th in columns} == {"col"}
        assert body.children
        for line in body.children:
            first, *others = line.children
            assert (first.tag, first.attributes.get("scope")) == ("th", "row")
            assert {cell.tag for cell in others} == {"td"}
            assert len(line.children) == len(columns)
        region = table.parent
        assert region
        assert region.attributes["role"] == "region"
        assert region.attributes["tabindex"] == "0"
        assert region.attributes["aria-label"]


def test_every_drawing_has_a_text_in_its_place(page: Element) -> None:
    figures = page.find("figure")
    assert len(figures) == 8
    for figure in figures:
        first, *others = figure.find("svg")
        assert first.attributes["role"] == "img"
        assert len(first.attributes["aria-label"]) > 60
        assert all(svg.attributes["aria-hidden"] == "true" for svg in others)
        for svg in (first, *others):
            assert not {"width", "height"} & svg.attributes.keys()
            assert svg.attributes["viewbox"]
        assert len(figure.find("figcaption")) == 1
    depth, two, six, seven = (f.find("svg")[0].attributes["aria-label"] for f in figures[:4])
    for said in (depth, six):
        assert "plain-56: training 3.40%, test 13.45%" in said
        assert "ResNet-56: training 0.10%, test 7.15%" in said
    assert "plain-56" in two
    assert "ResNet" not in two  # of the nets that are shown
    assert "ResNet-56" in seven


def test_sections_are_labelled_by_their_headings(page: Element) -> None:
    for section in page.find("section"):
        heading = section.children[0]
        assert heading.tag == "h2"
        assert section.attributes["aria-labelledby"] == heading.attributes["id"]


def test_the_answer_comes_first_and_then_what_it_is_about(page: Element) -> None:
    headings = [re.sub(r":.*", "", heading.text) for heading in page.find("h2")]
    every = ["Verdicts", "Figures", "Table 6", "Runs", "Make it again"]
    assert headings == [
        "Side by side",
        "The answer",
        "What this is about",
        *every,
        "The answer",
        *every,
        "How claims are judged",
    ]
    answer, about = page.find("section")[1:3]
    assert "Plain nets get worse with depth +2.60 points of training error" in answer.text
    assert "n = 2" in answer.text
    assert answer.find("figure")[0].find("strong")[0].text == "Final error against depth."
    for term in ("degradation", "constructed solution", "residual net", "overfitting", "error"):
        assert term in about.text
    assert "here it is built by hand" in about.text


def test_what_was_not_constructed_is_not_said_to_be(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 20))
    assert "built by hand" not in make_page(tmp_path).read_text()


def test_every_verdict_is_there_with_its_numbers(study: Path, page: Element) -> None:
    items = [
        li
        for ul in page.find("ul")
        if "verdicts" in ul.attributes.get("class", "")
        for li in ul.children
    ]
    groups = collect(str(study), EXPERIMENT)
    verdicts = [v for group in groups for v in judge(questions(numbers(group)))]
    assert len(items) == len(verdicts) == 30
    assert len({verdict.word for verdict in verdicts}) > 1
    for item, verdict in zip(items, verdicts, strict=True):
        assert item.text.startswith(f"{verdict.word} : {verdict.statement}")
        assert item.attributes["class"] == verdict.word.replace(" ", "-")
        assert verdict.reason in item.text
        assert verdict.source in item.text
        bars = [svg for svg in item.find("svg") if svg.attributes["class"] == "bar"]
        assert len(bars) == (verdict.interval is not None)
        if verdict.difference is not None and verdict.interval:
            low, high = map(signed, verdict.interval)
            assert f"{signed(verdict.difference)} {verdict.unit}" in item.text
            assert f"95% interval {low} to {high}" in item.text
        if verdict.n:
            assert f"n = {seeds_text(verdict)}" in item.text
    of_first = judge(questions(numbers(groups[0])))
    assert f"Primary claims: {tally(of_first)}." in page.text
    caption = groups[0].caption()
    assert f"{caption[0].upper()}{caption[1:]}." in page.text


@pytest.mark.parametrize(
    ("family", "above", "word", "leaning", "said"),
    [
        ("plain", True, "supported", "", "Plain nets get worse with depth"),
        ("plain", True, "contradicted", "", "Plain nets get better with depth"),
        ("plain", True, "no such effect", "", "Plain nets do not get worse with depth by as much"),
        ("residual", False, "supported", "", "Residual nets do not get worse with depth"),
        ("gated", False, "contradicted", "", "Gated nets get worse with depth"),
        ("residual", False, "indicated", "contradicted", "Residual nets get worse with depth, as"),
        ("residual", False, "not decided", "", "Whether residual nets get worse with depth is not"),
    ],
)
def test_the_answer_says_what_the_verdict_says(
    family: str, above: bool, word: str, leaning: str, said: str
) -> None:
    made = Verdict(
        *("x", True, family, "It is so", "here", above, 0.5, -0.5, "points", word, "why"),
        difference=2.0,
        interval=(1.0, 3.0),
        n={"a": 3, "b": 3},
        leaning=leaning,
    )
    assert answer(made)["said"].startswith(said)
    assert "+2.00 points" in answer(made)["numbers"]
    assert "n = 3" in answer(made)["numbers"]


def test_a_bar_puts_the_number_between_the_ends_of_its_interval() -> None:
    made = Verdict(
        *("x", True, "plain", "It is so", "here", True, 0.5, -0.5, "points", "supported", "above"),
        difference=2.0,
        interval=(1.0, 3.0),
    )
    svg = read(str(bar(made))).find("svg")[0]
    at = {line.attributes["class"]: line.attributes for line in svg.find("line")}
    left, right = (float(at["interval"][key]) for key in ("x1", "x2"))
    dot = float(svg.find("circle")[0].attributes["cx"])
    assert dot == pytest.approx((left + right) / 2, abs=0.1)
    assert float(at["zero"]["x1"]) < float(at["margin"]["x1"]) < left < right < 320
    assert bar(replace(made, interval=None)) is None


def test_tags_stand_side_by_side(study: Path, page: Element) -> None:
    table = page.find("section")[0].find("table")[0]
    assert [th.text for th in table.find("thead")[0].find("th")] == ["net", "no tag", TAG]
    cells = {tr.children[0].text: [td.text for td in tr.find("td")] for tr in table.find("tr")}
    assert cells["plain-20"] == ["9.65 ± 0.21 (0.80 ± 0.14)"] * 2


def test_the_table_is_table_6(study: Path, page: Element) -> None:
    tables = [t for t in page.find("table") if "published" in t.find("caption")[0].text]
    for table, group in zip(tables, collect(str(study), EXPERIMENT), strict=True):
        headers, cells = filled(rows(group))
        assert "difference" not in headers  # from the paper's values, which are on other data
        assert [th.text for th in table.find("thead")[0].find("th")] == headers
        shown = [[cell.text for cell in line.children] for line in table.find("tbody")[0].children]
        assert shown == cells
        assert len(shown) == 8
        assert all(note in page.text for note in notes(group))


def test_every_run_is_there_with_its_provenance(study: Path, page: Element) -> None:
    names = {path.name for path in (study / EXPERIMENT).iterdir() if RunDirectory(path).exists()}
    assert len(names) == 2 * (12 + 4 + 1) + 1
    details = {e.attributes["id"].removeprefix("run-"): e for e in page.find("details")}
    assert details.keys() == names
    links = {unquote(a.attributes["href"]) for a in page.find("a")}
    assert links == {*(f"#run-{name}" for name in names), "#rules"}
    for name, element in details.items():
        run = RunDirectory(study / EXPERIMENT / name)
        summary = run.summary()
        assert summary
        for said in (summary["data_digest"], summary["config_hash"], "9.9.9", '"momentum": 0.9'):
            assert said in element.text
        (summary_element,) = element.find("summary")
        assert name in summary_element.text
    cells = [tr.text for table in page.find("table") for tr in table.find("tr")]
    assert "plain-56-s1 complete 3.50 13.60 1:20 min cpu" in cells
    assert "residual-56-s2 running 5.00 10.00 1:20 min cpu" in cells
    assert "plain-32-s0-constructed20 complete 0.70 9.50 1:20 min cpu" in cells


def test_what_is_missing_is_named(page: Element) -> None:
    assert "plain-44-s0 has 150 of 300 iterations (failed)" in page.text
    assert f"residual-56-s2-{TAG} has 150 of 300 iterations (running)" in page.text


def test_what_a_machine_calls_itself_is_text(study: Path, page: Element) -> None:
    text = (study / EXPERIMENT / "report.html").read_text()
    assert "<script>alert" not in text
    assert "<img" not in text
    (element,) = (e for e in page.find("details") if e.attributes["id"] == "run-plain-44-s0")
    summary = json.loads("".join(element.find("pre")[1].texts))
    assert (summary["host"], summary["reason"]) == (HOSTILE, HOSTILE)
    assert any(cell.text == HOSTILE for cell in page.find("td"))


def test_a_folder_by_any_name_is_text(tmp_path: Path) -> None:
    root = "/data/--><script>alert('1')<&$y_{$"
    data = Data("image_folder", root=root)
    run = write(config(tmp_path, "plain", 20, data=data, recipe=DIGITS), response=0.5)
    run.path.rename(run.path.with_name("<img src=x onerror=alert(1)>"))
    text = make_page(tmp_path).read_text()
    assert "<img" not in text
    assert "<script>alert" not in text
    assert len(read(text).find("script")) == 1
    assert "images of --><script>alert('1')<&$y_{$" in read(text).text


# The commands.

PICTURES = Data("image_folder", root="DIR", cache="c")


def as_given(outputs: Path, commands_: list[str], root: Path) -> dict[str, str]:
    """The runs that commands make: what identifies each, by its place in the outputs folder."""
    made: dict[str, Config] = {}
    for command in commands_:
        program, verb, *words = shlex.split(command.replace("DIR", str(root)))
        assert program == "resrepro"
        if verb == "train":
            parsed = parse(words)
            assert parsed.multirun
            for run in expand("train", [[*parsed.overrides, "outputs=outputs"]], None):
                assert str(run.directory) not in made
                made[str(run.directory)] = run
    return {place: config_hash(run) for place, run in made.items()}


CONFIGURATIONS: dict[str, dict[str, object]] = {
    "the paper's": {},
    "digits": {"data": "digits", "recipe": DIGITS},
    "option B and width": {"shortcut": "B", "width": 8},
    "a tag": {"tag": "warm"},
    "a tag like a number": {"tag": "1e3"},
    "a tag like a list": {"tag": "a,b"},
    "a tag like an override": {"tag": "lr=0.05"},
    "a tag like nothing": {"tag": "null"},
    "a tag like yes": {"tag": "True"},
    "arithmetic": {"precision": "bfloat16", "compile": True, "deterministic": True},
    "evaluations": {"evaluate_every": 100},
    "iterations and drops": {"recipe": replace(PAPER, iterations=6400, drops=[0.25, 0.5, 0.9])},
    "no drop": {"recipe": replace(PAPER, drops=[], learning_rate=0.05, weight_decay=1e-6)},
    "no mirror images": {"recipe": replace(PAPER, flip=False, padding=0, warm_up=WarmUp(None))},
    "another warm-up": {"recipe": replace(PAPER, warm_up=WarmUp(20, 0.005, 70.0))},
    "a recipe of one's own": {
        "recipe": Recipe("mine", 10, 64, 0.3, 0.8, 0.0, [0.5], 2, True, WarmUp(56, 0.02, 60.0))
    },
    "CIFAR-100": {"data": Data("cifar100")},
    "smaller images": {"data": Data("cifar10", image_size=16)},
    "held out": {"data": Data("cifar10", split="validation", mean="channel")},
    "AdamW": {"optimizer": Optimizer("AdamW", {"betas": [0.9, 0.999], "weight_decay": 1e-4})},
    "an optimizer of one's own": {
        "optimizer": Optimizer("Adadelta", {"rho": 0.5, "maximize": False, "weight_decay": 0.0})
    },
    "pictures": {"data": PICTURES, "recipe": DIGITS},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_commands_make_the_same_runs_again(tmp_path: Path, name: str) -> None:
    keys = CONFIGURATIONS[name]
    nets = [("plain", 20, 0), ("plain", 56, 0), ("residual", 110, 7)]
    made = [config(tmp_path, *net, **keys) for net in nets]
    for run in made:
        write(run)
    (group,) = collect(str(tmp_path), EXPERIMENT)
    given = commands(group)
    expected = {f"outputs/{EXPERIMENT}/{run.name}": config_hash(run) for run in made}
    assert as_given(tmp_path, given, tmp_path) == expected
    assert len(given) == 3
    assert given[-1] == f"resrepro report experiment={EXPERIMENT}"


def test_runs_that_differ_in_what_may_differ_have_commands_of_their_own(tmp_path: Path) -> None:
    made = [
        config(tmp_path, "residual", 20),
        config(tmp_path, "residual", 32, shortcut="B", tag="B"),
        config(tmp_path, "residual", 20, 1, evaluate_every=500),
    ]
    for run in made:
        write(run)
    expected = {f"outputs/{EXPERIMENT}/{run.name}": config_hash(run) for run in made}
    given = [line for group in collect(str(tmp_path), EXPERIMENT) for line in commands(group)]
    assert as_given(tmp_path, given, tmp_path) == expected


def test_an_extensions_runs_have_commands_that_name_it_where_it_is_not_given(
    tmp_path: Path,
) -> None:
    """A page is made of results alone."""
    extensions = {"gated.py": "0" * 64}
    write(config(tmp_path, "gated", 20, recipe=DIGITS, data="digits", extensions=extensions))
    (group,) = collect(str(tmp_path), EXPERIMENT)
    assert commands(group)[0] == (
        "resrepro train -m --extension gated.py model=gated data=digits recipe=digits depth=20 "
        f"seed=0 experiment={EXPERIMENT}"
    )


@pytest.mark.parametrize("experiment", ["007", "a,b", "x=1", "true"])
def test_an_experiment_by_any_name_keeps_it(tmp_path: Path, experiment: str) -> None:
    run = replace(config(tmp_path, "plain", 20), experiment=experiment)
    write(run)
    (group,) = collect(str(tmp_path), experiment)
    assert as_given(tmp_path, commands(group), tmp_path) == {
        f"outputs/{experiment}/plain-20-s0": config_hash(run)
    }


def test_nets_of_the_same_seeds_share_a_command(study: Path) -> None:
    base, _ = collect(str(study), EXPERIMENT)
    options = f"data=digits recipe=digits depth={{}} seed={{}} experiment={EXPERIMENT}"
    assert [line for line in commands(base) if "train" in line] == [
        f"resrepro train -m model=plain {options.format('20,32,56', '0,1')}",
        f"resrepro train -m model=plain {options.format('44', '0')}",
        f"resrepro train -m model=residual {options.format('20,32', '0,1')}",
        f"resrepro train -m model=residual {options.format('56', '0,1,2')}",
    ]


def test_constructed_solutions_are_constructed_again(study: Path) -> None:
    base, tagged = collect(str(study), EXPERIMENT)
    lines = [line for line in commands(base) if "construct" in line]
    assert sorted(lines) == [
        f"resrepro construct run=outputs/{EXPERIMENT}/plain-20-s{seed} depth={depth}"
        for seed in (0, 1)
        for depth in (32, 56)
    ]
    words = shlex.split(next(line for line in commands(tagged) if "construct" in line))
    assert words[2] == f"run='outputs/{EXPERIMENT}/plain-20-s0-{TAG}'"


def test_nets_trained_on_are_constructed_and_not_trained_from_scratch(tmp_path: Path) -> None:
    source = config(tmp_path, "plain", 20)
    made = config(tmp_path, "plain", 56, origin=20)
    trained = replace(
        made, recipe=replace(made.recipe, iterations=500), tag="constructed20-trained"
    )
    for run in (source, made, trained):
        write(run)
    _, group = collect(str(tmp_path), EXPERIMENT)
    assert commands(group) == [
        f"resrepro construct run=outputs/{EXPERIMENT}/plain-20-s0 depth=56 recipe.iterations=500",
        f"resrepro report experiment={EXPERIMENT}",
    ]


def test_the_page_gives_these_commands(study: Path, page: Element) -> None:
    blocks = [
        s.find("pre")[0] for s in page.find("section") if s.children[0].text.startswith("Make")
    ]
    for block, group in zip(blocks, collect(str(study), EXPERIMENT), strict=True):
        assert "".join(block.texts).splitlines() == commands(group)


# In a browser. The page is shown in a frame: a window of the browser is at least 500 pixels wide.

PROBE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement;
  const wide = [...document.querySelectorAll("body *")].filter(e => !e.closest(".wide, pre, svg")
    && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName);
  const open = [...document.querySelectorAll("details[open]")].map(e => e.id);
  const ink = getComputedStyle(document.body).color;
  parent.postMessage(JSON.stringify({ width: innerWidth, scroll: root.scrollWidth,
    wide, open, ink, paper: getComputedStyle(document.body).backgroundColor,
    dark: matchMedia("(prefers-color-scheme: dark)").matches, errors: window.errors }), "*");
}));
</script>
"""
FRAME = """<!doctype html><title>waiting</title><body style="margin:0">
<iframe src="probed.html{anchor}" style="border:0;width:{width}px;height:{height}px"></iframe>
<script>addEventListener("message", e => document.title = e.data)</script>
"""
CHROMIUM = shutil.which("chromium")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


def look(
    page: Path,
    folder: Path,
    width: int,
    dark: bool = False,
    anchor: str = "",
    height: int = 1500,
    probe: str = PROBE,
) -> tuple[dict[str, object], Path]:
    """What the browser says of a page at a width, and a picture of it."""
    text = page.read_text()
    assert text.count("</body>") == 1
    listen = "<script>errors = []; onerror = m => errors.push(m)</script>"
    text = text.replace("</head>", f"{listen}</head>").replace("</body>", f"{probe}</body>")
    (folder / "probed.html").write_text(text)
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width, height=height, anchor=anchor))
    picture = folder / f"{width}{'-dark' if dark else ''}.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder}/profile",
        f"--window-size={max(width, 500)},{height}",
        "--hide-scrollbars",
        "--virtual-time-budget=5000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--screenshot={picture}",
        "--dump-dom",
    ]
    done = subprocess.run(
        [str(CHROMIUM), *flags, frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    return json.loads(html.unescape(title[1])), picture


def brightness(colour: object) -> float:
    red, green, blue = (int(part) for part in re.findall(r"\d+", str(colour))[:3])
    return (0.3 * red + 0.6 * green + 0.1 * blue) / 255


@in_a_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_screen(
    study: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    seen, picture = look(study / EXPERIMENT / "report.html", tmp_path, width, dark)
    assert seen["width"] == width
    assert seen["scroll"] == width
    assert seen["wide"] == []
    assert seen["errors"] == []
    assert seen["dark"] == dark
    assert abs(brightness(seen["ink"]) - brightness(seen["paper"])) > 0.7
    assert (brightness(seen["paper"]) < 0.5) == dark
    assert picture.stat().st_size > 20_000


@in_a_browser
@pytest.mark.parametrize("name", ["plain-20-s0", f"plain-20-s0-{TAG}"])
def test_a_link_to_a_run_opens_its_provenance(study: Path, tmp_path: Path, name: str) -> None:
    seen, _ = look(study / EXPERIMENT / "report.html", tmp_path, 1280, anchor=f"#run-{name}")
    assert seen["open"] == [f"run-{name}"]
    assert seen["errors"] == []


AXE = """
<script>
const only = { resultTypes: ["violations"] };
addEventListener("load", () => axe.run(document, only).then(found =>
  parent.postMessage(JSON.stringify({ violations: found.violations.map(v =>
    `${v.impact} ${v.id}: ${v.nodes[0].html.slice(0, 99)}`), passes: found.passes.length }), "*")));
</script>
"""


@in_a_browser
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1200, True)], ids=["light", "dark"])
def test_axe_finds_nothing_serious(study: Path, tmp_path: Path, width: int, dark: bool) -> None:
    """Whoever reads by keyboard, by ear or with poor sight reads it too."""
    axe = files("axe_core_python").joinpath("axe.min.js").read_text()
    probe = f"<script>{axe}</script>{AXE}"
    seen, _ = look(study / EXPERIMENT / "report.html", tmp_path, width, dark, probe=probe)
    assert isinstance(seen["passes"], int)
    assert seen["passes"] > 10
    found = seen["violations"]
    assert isinstance(found, list)
    assert [v for v in found if v.startswith(("serious", "critical"))] == []


@in_a_browser
@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="there is no pdftotext here")
def test_nothing_is_cut_on_paper(study: Path, tmp_path: Path) -> None:
    page, pdf = study / EXPERIMENT / "report.html", tmp_path / "page.pdf"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    flags += ["--disable-background-networking", "--disable-sync", f"--print-to-pdf={pdf}"]
    words = [str(CHROMIUM), *flags, page.as_uri()]
    subprocess.run(words, capture_output=True, timeout=120, check=True)
    text = subprocess.run(["pdftotext", str(pdf), "-"], capture_output=True, text=True, check=True)
    printed = re.sub(r"\s+", "", text.stdout)
    (base, _) = collect(str(study), EXPERIMENT)
    headers, cells = filled(rows(base))
    words = [word for cell in (*headers, *cells[0]) for word in cell.split()]
    for said in (*words, *commands(base)):
        assert re.sub(r"\s+", "", said) in printed


def test_a_study_is_made_again_by_one_line(tmp_path: Path) -> None:
    words = ["data=digits", "recipe=digits", "recipe.iterations=20", "experiment=smoke", "seed=0,1"]
    sweep = [*words, "model=plain,residual", "depth=8,14", f"outputs={tmp_path}"]
    runs = expand("train", [sweep], None)
    for run in runs:
        write(run)
    (group,) = collect(str(tmp_path), "smoke")
    assert commands(group) == ["resrepro reproduce study=smoke seed=0,1"]
    write(replace(runs[0], seed=2))  # one more than the study makes with these seeds
    (group,) = collect(str(tmp_path), "smoke")
    assert len(commands(group)) > 1
