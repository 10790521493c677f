"""The paper's SGD identifies a run as it always did; others are names and keywords, and checked."""

from pathlib import Path

import pytest

from resrepro.configuration.composition import expand
from resrepro.configuration.schema import (
    Config,
    Optimizer,
    config_hash,
    differences,
    from_mapping,
)
from resrepro.errors import ConfigError
from resrepro.runs.run_directory import RunDirectory

RESULTS = Path(__file__).parents[2] / "docs/results"
DIGITS = ("data=digits", "recipe=digits")


def one(*words: str, config_dir: Path | None = None) -> Config:
    return expand("train", [[*DIGITS, *words]], str(config_dir) if config_dir else None)[0]


def file(folder: Path, text: str) -> Path:
    (folder / "optimizer").mkdir()
    (folder / "optimizer/mine.yaml").write_text(text)
    return folder


def test_the_papers_is_the_run_that_it_was_before_there_were_others() -> None:
    """Results of before `optimizer` are the same runs: a study goes on where they are."""
    run = RunDirectory(RESULTS / "digits/residual-20-s0")
    committed, summary = run.config(), run.summary()
    assert summary
    assert summary["config_hash"] == config_hash(committed) == config_hash(one("optimizer=sgd"))
    assert "optimizer" not in one().to_dict()
    assert differences(committed, one("recipe.momentum=0.8")) == {"recipe.momentum": (0.9, 0.8)}


@pytest.mark.parametrize(
    ("option", "name", "keywords"),
    [
        ("nesterov", "SGD", {"momentum": 0.8, "weight_decay": 0.002, "nesterov": True}),
        ("adam", "Adam", {"betas": [0.9, 0.999], "weight_decay": 0.002}),
        ("adamw", "AdamW", {"betas": [0.9, 0.999], "weight_decay": 0.002}),
    ],
)
def test_an_option_takes_what_it_can_of_the_recipe(
    option: str, name: str, keywords: dict[str, object]
) -> None:
    config = one(f"optimizer={option}", "recipe.momentum=0.8", "recipe.weight_decay=0.002")
    assert config.optimizer == Optimizer(name, keywords)
    again = from_mapping(config.to_dict(), is_used=False)
    assert (again, config_hash(again)) == (config, config_hash(config))
    assert config_hash(config) != config_hash(one("recipe.momentum=0.8"))


def test_what_differs_from_the_papers_is_spelled_out() -> None:
    assert differences(one(), one("optimizer=nesterov")) == {
        "optimizer.keywords.nesterov": (None, True)
    }
    assert differences(one(), one("optimizer=adamw"))["optimizer.name"] == ("SGD", "AdamW")
    with pytest.raises(ConfigError, match=r"as in 'tag=name\$\{optimizer.name\}'"):
        expand("train", [[*DIGITS, "optimizer=sgd,adamw"]], None)
    with pytest.raises(ConfigError, match=r"nesterov None and True\); train each by itself"):
        expand("train", [[*DIGITS, "optimizer=sgd,nesterov"]], None)


def test_a_file_of_ones_own_names_any_other(tmp_path: Path) -> None:
    text = "name: RMSprop\nkeywords: {alpha: 0.9, weight_decay: '${recipe.weight_decay}'}\n"
    config = one("optimizer=mine", config_dir=file(tmp_path, text))
    assert config.optimizer == Optimizer("RMSprop", {"alpha": 0.9, "weight_decay": 1e-4})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "name: AdamV",
            r"optimizer\.name=AdamV: torch\.optim has no such optimizer; choose .*NAdam",
        ),
        ("name: Optimizer", r"optimizer\.name=Optimizer: torch\.optim has no such"),
        ("name: lr_scheduler", r"optimizer\.name=lr_scheduler: torch\.optim has no such"),
        ("name: os.system", r"optimizer\.name=os\.system: torch\.optim has no such"),
        ("name: LBFGS", r"LBFGS computes the loss several times an iteration; choose one of ASGD"),
        ("name: SparseAdam", r"SparseAdam is for sparse gradients"),
        ("name: Muon", r"Muon is for matrices alone"),
        ("name: Rprop", r"Rprop takes its rate at the first iteration alone"),
        ("name: Adam\nkeywords: {eta: 1}", r"optimizer\.keywords\.eta: Adam takes betas, eps, "),
        ("name: Adam\nkeywords: {lr: 1}", r"optimizer\.keywords\.lr: .*recipe\.learning_rate"),
        ("name: Adam\nkeywords: {fused: true}", r"keywords\.fused: .*device and cuda_graph"),
        ("name: Adam\nkeywords: {eps: small}", r"keywords\.eps=small: must be a number, true"),
        ("name: Adam\nkeywords: {eps: .nan}", r"keywords\.eps=nan: must be a number, true"),
        ("name: Adam\nkeywords: {eps: {_target_: os.abort}}", r"must be a number, true"),
        ("name: Adam\nkeywords: {eps: -1}", r"Adam refuses them: Invalid epsilon value: -1"),
        ("name: Adam\nkeywords: {betas: 0.9}", r"Adam refuses them: "),
        ("name: Adam\ncall: os.abort", r"call"),
        ("keywords: {eps: 1}", r"optimizer\.name"),
    ],
)
def test_what_cannot_train_a_net_is_refused_in_a_line(text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=line) as refused:
        one("optimizer=mine", config_dir=file(tmp_path, text))
    assert len(str(refused.value).splitlines()) == 1


def test_a_keyword_that_the_file_has_not_is_added_with_a_plus() -> None:
    with pytest.raises(ConfigError, match=r"no such keyword; \+optimizer\.keywords\.eps=VALUE"):
        one("optimizer=adam", "optimizer.keywords.eps=1e-7")
    made = one("optimizer=adam", "+optimizer.keywords.eps=1e-7").optimizer
    assert made
    assert made.keywords["eps"] == 1e-7


def test_only_some_can_be_captured(tmp_path: Path) -> None:
    for option in ("nesterov", "adam", "adamw"):
        assert one(f"optimizer={option}", "cuda_graph=true").optimizer
    folder = file(tmp_path, "name: Adagrad")
    with pytest.raises(ConfigError, match="cuda_graph=true: Adagrad cannot be captured; use"):
        one("optimizer=mine", "cuda_graph=true", config_dir=folder)


def test_a_run_of_an_optimizer_that_is_not_there_can_be_looked_at() -> None:
    there = one().to_dict() | {"optimizer": {"name": "FromLater", "keywords": {"gamma": 1}}}
    assert from_mapping(there, is_used=False).optimizer == Optimizer("FromLater", {"gamma": 1})
    with pytest.raises(ConfigError, match="no such optimizer"):
        from_mapping(there)
