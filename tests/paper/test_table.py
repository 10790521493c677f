import csv
import re
from pathlib import Path

import numpy as np
import pytest
from made_up import DIGITS, EXPERIMENT, config, group, write, write_nets

from resrepro.configuration.schema import Data
from resrepro.paper.table import HEADERS, final_errors, notes, rows, write_table

PLAIN_56 = {"test": [13.0, 13.5, 14.3], "train": [3.0, 3.5, 4.1], "best": [12.5, 13.25, 14.0]}


def cells(outputs: Path) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(HEADERS, row, strict=True)) for row in rows(group(outputs))}


def test_every_cell_of_a_net_with_three_seeds(tmp_path: Path) -> None:
    write_nets(tmp_path, {("plain", 56): PLAIN_56})
    assert cells(tmp_path)["plain-56"] == {
        "net": "plain-56",
        "parameters": "56,722",
        "n": "3",
        "final test error %": "13.60 ± 0.66",
        "best test error %": "13.25 ± 0.75",
        "final training error %": "3.53 ± 0.55",
        "paper, test %": "~13.5 (figure 6)",
        "difference": "+0.10",
        "a-martyn, train / test %": "3.33 / 13.07",
        "akamaster, test %": "",
    }


def test_every_cell_of_a_net_with_one_seed(tmp_path: Path) -> None:
    write(config(tmp_path, "residual", 110), test=6.5, train=0.04, best=6.4, parameters=1_727_962)
    assert cells(tmp_path)["ResNet-110"] == {
        "net": "ResNet-110",
        "parameters": "1,727,962",
        "n": "1",
        "final test error %": "6.50",
        "best test error %": "6.40",
        "final training error %": "0.04",
        "paper, test %": "6.61 ± 0.16 (5), best 6.43",
        "difference": "-0.11",
        "a-martyn, train / test %": "",
        "akamaster, test %": "6.32",
    }


def test_best_is_the_lowest_of_all_evaluations_and_final_the_last(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 20), test=9.0, best=11.0)
    write(config(tmp_path, "plain", 32), test=9.0, best=8.0)
    made = cells(tmp_path)
    assert [made["plain-20"][c] for c in HEADERS[3:5]] == ["9.00", "9.00"]
    assert [made["plain-32"][c] for c in HEADERS[3:5]] == ["9.00", "8.00"]


def test_nets_are_in_order_plain_first_then_by_depth(tmp_path: Path) -> None:
    for model, depth in (("residual", 110), ("residual", 20), ("plain", 110), ("plain", 32)):
        write(config(tmp_path, model, depth))
    assert list(cells(tmp_path)) == ["plain-32", "plain-110", "ResNet-20", "ResNet-110"]


def test_only_complete_runs_count(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 20, seed=0), test=9.0)
    write(config(tmp_path, "plain", 20, seed=1), test=70.0, status="interrupted")
    write(config(tmp_path, "plain", 56), test=70.0, status="running")
    write(config(tmp_path, "residual", 20), test=70.0, status="diverged")
    made = cells(tmp_path)
    assert list(made) == ["plain-20"]
    assert (made["plain-20"]["n"], made["plain-20"]["final test error %"]) == ("1", "9.00")


def test_nets_nobody_published_have_empty_cells(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 8))
    assert [cells(tmp_path)["plain-8"][header] for header in HEADERS[6:]] == [""] * 4


def test_plain_110_has_the_papers_words_and_no_difference(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 110), test=75.0)
    made = cells(tmp_path)["plain-110"]
    assert (made["paper, test %"], made["difference"]) == ("> 60 (not displayed)", "")


@pytest.mark.parametrize(
    "data",
    [
        Data("cifar100"),
        Data("digits"),
        Data("image_folder", root="pictures"),
        Data("cifar10", image_size=16),
    ],
)
def test_a_difference_is_only_taken_on_the_papers_images(tmp_path: Path, data: Data) -> None:
    write(config(tmp_path, "plain", 20, data=data))
    made = cells(tmp_path)["plain-20"]
    assert (made["difference"], made["paper, test %"]) == ("", "~9.5 (figure 6)")
    assert any("other data" in note for note in notes(group(tmp_path)))


def test_on_the_papers_images_nothing_is_said_of_other_data(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 20))
    assert cells(tmp_path)["plain-20"]["difference"] == "+0.50"
    assert not any("other data" in note for note in notes(group(tmp_path)))


def test_a_net_of_another_width_is_not_the_papers(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 20, width=8))
    assert cells(tmp_path)["plain-20"]["difference"] == ""


def test_constructed_solutions_have_rows_after_all_nets_by_depth(tmp_path: Path) -> None:
    write_nets(tmp_path, {("plain", 20): {"test": [9.0, 9.4]}, ("residual", 20): {"test": [8.0]}})
    for depth in (110, 32):
        for seed, test in enumerate((9.0, 9.4)):
            made = config(tmp_path, "plain", depth, seed, origin=20)
            write(made, test=test, train=0.5 + seed)
    write(config(tmp_path, "residual", 32, origin=20), test=8.0)
    made = cells(tmp_path)
    names = ["plain-32 from 20", "plain-110 from 20", "ResNet-32 from 20"]
    assert list(made) == ["plain-20", "ResNet-20", *names]
    assert made["plain-110 from 20"] == {
        "net": "plain-110 from 20",
        "parameters": "110,722",
        "n": "2",
        "final test error %": "9.20 ± 0.28",
        "best test error %": "9.20 ± 0.28",
        "final training error %": "1.00 ± 0.71",
        "paper, test %": "",
        "difference": "",
        "a-martyn, train / test %": "",
        "akamaster, test %": "",
    }


@pytest.fixture
def files(tmp_path: Path) -> Path:
    nets = {
        ("plain", 20): {"test": [9.1, 9.3], "train": [0.7, 0.9]},
        ("plain", 110): {"test": [70.0, 75.0], "train": [80.0, 82.0]},
        ("residual", 110): {"test": [6.7, 6.5], "train": [0.1, 0.2]},
    }
    write_nets(tmp_path, nets)
    write(config(tmp_path, "plain", 110, origin=20), test=9.1, train=0.3)
    assert write_table(group(tmp_path), tmp_path / "tables") == tmp_path / "tables/table6.md"
    return tmp_path


def test_the_csv_file_has_the_tables_cells(files: Path) -> None:
    with (files / "tables/table6.csv").open(newline="") as file:
        read = [tuple(row) for row in csv.reader(file)]
    assert read == [HEADERS, *rows(group(files))]
    assert len(read) == 5


def test_the_markdown_file_has_the_tables_cells_title_and_notes(files: Path) -> None:
    text = (files / "tables/table6.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    read = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert read[0] == HEADERS
    assert set("".join(read[1])) <= set("-:")
    assert read[2:] == rows(group(files))
    assert text.startswith(f"# Table 6: {EXPERIMENT}\n")
    assert all(note in text for note in notes(group(files)))


def test_the_latex_file_has_a_balanced_table_of_the_same_cells(files: Path) -> None:
    text = (files / "tables/table6.tex").read_text()
    assert re.findall(r"\\(begin|end)\{(\w+)\}", text) == [("begin", "tabular"), ("end", "tabular")]
    columns = re.search(r"\\begin\{tabular\}\{([lrc]+)\}", text)
    assert columns
    assert len(columns[1]) == len(HEADERS)
    plain = text.replace(r"\%", "%").replace(r"$\pm$", "±").replace(r"\textasciitilde{}", "~")
    plain = plain.replace(r"\ensuremath{>}", ">")
    lines = [line.strip() for line in plain.splitlines() if line.strip().endswith(r"\\")]
    read = [tuple(cell.strip() for cell in line[:-2].split("&")) for line in lines]
    assert read == [HEADERS, *rows(group(files))]
    body = re.sub(r"\\[a-zA-Z]+(\{[<>]\})?|\\%", "", text)
    assert text.isascii()
    assert body.count("{") == body.count("}")
    assert body.count("$") % 2 == 0
    assert not re.search(r"[%#_~^<>]", body)


def test_a_tag_has_a_table_of_its_own(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 20, tag="warm"))
    assert write_table(group(tmp_path), tmp_path / "tables").name == "table6-warm.md"


def test_the_terminals_table_has_the_measured_columns(tmp_path: Path) -> None:
    write_nets(tmp_path, {("plain", 56): PLAIN_56, ("plain", 20): {"test": [10.5, 33.5]}})
    text = final_errors(group(tmp_path))
    assert all(len(line) <= 80 for line in text.splitlines())
    *headers, rule, _, line = text.splitlines()
    columns = [match.span() for match in re.finditer("-+", rule)]
    read = [" ".join(" ".join(h[a:b].strip() for h in headers).split()) for a, b in columns]
    assert read == list(HEADERS[:6])
    assert re.split(r"\s{2,}", line.strip()) == list(rows(group(tmp_path))[-1][:6])


def test_notes_say_data_recipe_seeds_and_what_the_numbers_are(tmp_path: Path) -> None:
    write_nets(tmp_path, {("plain", 20): {"test": [1.0, 2.0]}}, data="digits", recipe=DIGITS)
    text = " ".join(notes(group(tmp_path)))
    for words in ("digits", "300 iterations for 64,000", "n = 2", "last iteration", "flatters"):
        assert words in text


def test_deviations_are_those_of_a_sample(tmp_path: Path) -> None:
    values = [8.0, 8.5, 9.5, 8.25]
    write_nets(tmp_path, {("residual", 20): {"test": values}})
    deviation = np.sqrt(np.square(np.array(values) - np.mean(values)).sum() / 3)
    expected = f"{np.mean(values):.2f} ± {deviation:.2f}"
    assert cells(tmp_path)["ResNet-20"]["final test error %"] == expected
