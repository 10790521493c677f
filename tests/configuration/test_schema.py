import copy
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resrepro.cli import one_line
from resrepro.configuration.schema import (
    Config,
    config_hash,
    data_from_mapping,
    differences,
    flatten,
    from_mapping,
)
from resrepro.errors import ConfigError

BASE: dict[str, Any] = {
    "model": {"name": "residual", "width": 16, "shortcut": "A"},
    "depth": 20,
    "seed": 0,
    "data": {
        "name": "cifar10",
        "root": "somewhere",
        "split": "test",
        "mean": "pixel",
        "url": ["http://localhost/archive.tar.gz"],
        "sha256": "0" * 64,
    },
    "recipe": {
        "name": "paper",
        "iterations": 64_000,
        "batch_size": 128,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "drops": [0.5, 0.75],
        "padding": 4,
        "flip": True,
        "warm_up": {"depth": 110, "learning_rate": 0.01, "until_error": 80.0},
    },
    "precision": "float32",
    "compile": False,
    "deterministic": False,
    "evaluate_every": None,
    "device": "auto",
    "threads": None,
    "cuda_graph": None,
    "activation_checkpointing": False,
    "checkpoint_seconds": 60.0,
    "outputs": "outputs",
    "experiment": "cifar10",
    "tag": None,
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The base configuration with values at dotted keys replaced."""
    mapping = copy.deepcopy(BASE)
    for key, value in changes.items():
        *groups, last = key.split(".")
        node = mapping
        for group in groups:
            node = node[group]
        node[last] = value
    return mapping


def of(key: str, value: Any) -> Config:
    return from_mapping(changed({key: value}))


def test_values_arrive_with_their_types() -> None:
    config = from_mapping(BASE)
    assert (config.depth, config.recipe.iterations) == (20, 64_000)
    assert (config.recipe.learning_rate, config.recipe.warm_up.depth) == (0.1, 110)
    assert config.recipe.drops == [0.5, 0.75]
    assert (config.data.root, config.data.image_size) == ("somewhere", None)


def test_a_configuration_survives_being_written_and_read() -> None:
    for changes in ({}, {"tag": "x", "evaluate_every": 7, "compile": True, "data.image_size": 16}):
        config = from_mapping(changed(changes))
        again = from_mapping(config.to_dict())
        assert again == config
        assert config_hash(again) == config_hash(config)


def test_keys_that_do_not_apply_are_left_out() -> None:
    plain = changed({"model": {"name": "plain"}, "data": {"name": "digits"}})
    written = flatten(from_mapping(plain).to_dict())
    assert "model.shortcut" not in written
    assert "data.root" not in written


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("depth", 21, "depth=21: .*6n\\+2.*nearest is 20"),
        ("depth", 2, "depth=2: .*nearest is 8"),
        ("depth", -4, "depth=-4"),
        pytest.param("depth", 10**400, "depth=1000.*: must be 12002 or less", id="depth-huge"),
        ("depth", 57, "depth=57: .*nearest is 56"),
        ("depth", "deep", "depth=deep: must be a whole number$"),
        ("depth", None, "depth"),
        ("seed", -1, "seed=-1"),
        ("seed", 2**63, "seed=9223372036854775808"),
        ("seed", 0.5, "seed=0.5: must be a whole number$"),
        ("model.name", "vgg", "model.name=vgg: must be plain or residual"),
        ("model.shortcut", "C", "model.shortcut=C: must be A or B"),
        ("model.shortcut", None, "model.shortcut=None: must be A or B"),
        ("model.width", 0, "model.width=0: must be 1 or more"),
        ("data.name", "mnist", "data.name=mnist"),
        ("data.split", "train", "data.split=train: must be test or validation"),
        ("data.mean", "none", "data.mean=none: must be pixel or channel"),
        ("data.image_size", 7, "data.image_size=7: must be 8 or more"),
        ("recipe.iterations", 0, "recipe.iterations=0: must be 1 or more"),
        ("recipe.iterations", -5, "recipe.iterations=-5"),
        ("recipe.iterations", "foo", "recipe.iterations=foo: must be a whole number$"),
        ("recipe.batch_size", 1, "recipe.batch_size=1: must be 2 or more"),
        ("recipe.batch_size", 65_537, "recipe.batch_size=65537: must be 65536 or less"),
        ("recipe.padding", 65, "recipe.padding=65: must be 64 or less"),
        (
            "recipe.learning_rate",
            1e300,
            "recipe.learning_rate=1e.300: must be a positive number, 1e.38 at most",
        ),
        (
            "recipe.learning_rate",
            0,
            "recipe.learning_rate=0.0: must be a positive number, 1e.38 at most",
        ),
        ("recipe.learning_rate", math.nan, "recipe.learning_rate=nan"),
        ("recipe.learning_rate", math.inf, "recipe.learning_rate=inf"),
        pytest.param("recipe.learning_rate", 10**400, "recipe.learning_rate", id="rate-huge"),
        ("recipe.drops", "${depth}", "recipe.drops"),
        ("recipe.momentum", 1, "recipe.momentum=1.0"),
        ("recipe.momentum", -0.1, "recipe.momentum=-0.1"),
        ("recipe.weight_decay", math.nan, "recipe.weight_decay=nan"),
        ("recipe.weight_decay", -1e-4, "recipe.weight_decay=-0.0001"),
        ("recipe.drops", [0.75, 0.5], "recipe.drops=.*rising"),
        ("recipe.drops", [0.5, 1.0], "recipe.drops="),
        ("recipe.drops", [0.0], "recipe.drops="),
        ("recipe.drops", [math.nan], "recipe.drops="),
        ("recipe.drops", 0.5, "recipe.drops=0.5: must be a list of numbers"),
        ("recipe.drops", ["a"], "recipe.drops.0.=a: must be a number$"),
        (
            "recipe.warm_up",
            None,
            "recipe.warm_up=null: must be a group of keys: recipe.warm_up.depth",
        ),
        ("data.image_size", 1025, "data.image_size=1025: must be 1024 or less"),
        ("recipe.padding", -1, "recipe.padding=-1: must be 0 or more"),
        ("recipe.flip", "perhaps", "recipe.flip=perhaps: must be true or false$"),
        ("recipe.warm_up.learning_rate", 0, "recipe.warm_up.learning_rate=0.0"),
        ("recipe.warm_up.until_error", 0, "recipe.warm_up.until_error"),
        ("recipe.warm_up.until_error", 101, "recipe.warm_up.until_error"),
        ("precision", "float16", "precision=float16: must be float32, tf32 or bfloat16"),
        ("compile", "yes please", "compile=yes please: must be true or false$"),
        ("evaluate_every", 0, "evaluate_every=0: must be 1 or more"),
        ("device", "tpu", "device=tpu: must be auto, cpu, cuda or cuda:N"),
        ("device", "cuda:", "device=cuda:"),
        ("device", "meta", "device=meta"),
        ("threads", 0, "threads=0: must be 1 or more"),
        ("checkpoint_seconds", -1, "checkpoint_seconds=-1"),
        ("checkpoint_seconds", math.nan, "checkpoint_seconds=nan"),
        ("experiment", "", "experiment="),
        ("experiment", "..", "experiment=\\.\\."),
        ("experiment", "a/b", "experiment=a/b"),
        ("tag", "a b", "tag=a b"),
        ("tag", "../up", "tag=../up"),
        ("tag", "-x", "tag=-x"),
        ("tag", "x" * 101, "tag=x"),
        ("outputs", None, "outputs"),
    ],
)
def test_a_bad_value_is_refused_with_its_key(key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}") as refused:
        of(key, value)
    assert refused.value.status == 2
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("group", ["", "recipe.", "model.", "data.", "recipe.warm_up."])
def test_an_unknown_key_is_refused(group: str) -> None:
    with pytest.raises(ConfigError, match="foo"):
        of(f"{group}foo", 1)


def test_what_is_compiled_is_not_captured_as_well() -> None:
    with pytest.raises(ConfigError, match="cuda_graph=true: does not go with compile=true"):
        from_mapping(changed({"compile": True, "cuda_graph": True}))


def test_a_plain_net_takes_no_shortcut() -> None:
    with pytest.raises(ConfigError, match=r"model\.shortcut=A: a plain net has no shortcuts"):
        of("model.name", "plain")


def test_image_folder_needs_a_folder_that_is_there(tmp_path: Path) -> None:
    def images(root: Any) -> dict[str, Any]:
        return changed({"data": {"name": "image_folder", "root": root}})

    with pytest.raises(ConfigError, match=r"data\.root is not given"):
        from_mapping(images(None))
    with pytest.raises(ConfigError, match=r"data\.root=.*absent: there is no such folder"):
        from_mapping(images(str(tmp_path / "absent")))
    assert from_mapping(images(str(tmp_path))).data.root == str(tmp_path)
    looked_at = from_mapping(images(str(tmp_path / "absent")), is_used=False)
    assert looked_at.data.name == "image_folder"


def test_a_data_set_alone_is_checked_too() -> None:
    assert data_from_mapping({"name": "digits", "url": "http://x"}).url == ["http://x"]
    with pytest.raises(ConfigError, match=r"data\.split=half"):
        data_from_mapping({"name": "digits", "split": "half"})


weird = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 0, -1])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["${foo}", "???", "${oc.env:HOME}", "${", "1e400", "${..depth}", "\n"])
    | st.lists(st.integers() | st.floats() | st.text(max_size=3), max_size=3)
    | st.dictionaries(st.text(max_size=4), st.integers(), max_size=2)
)


@settings(max_examples=60)
@given(changes=st.dictionaries(st.sampled_from(sorted(flatten(BASE))), weird, max_size=3))
def test_any_configuration_is_taken_or_refused_in_a_line(changes: dict[str, Any]) -> None:
    lines = ["taken"]
    try:
        config = from_mapping(changed(changes))
    except ConfigError as refused:
        lines = one_line(refused).splitlines()
    else:
        assert from_mapping(config.to_dict()) == config
    assert len(lines) == 1


# Another value for every key there is. Whoever adds a key has to say here which kind it is.
CHANGES_NUMBERS: dict[str, Any] = {
    "model.name": "plain",
    "model.width": 8,
    "model.shortcut": "B",
    "depth": 56,
    "seed": 1,
    "data.name": "cifar100",
    "data.split": "validation",
    "data.mean": "channel",
    "data.image_size": 16,
    "data.dataset": "SVHN",
    "data.variant": "letters",
    "recipe.iterations": 32_000,
    "recipe.batch_size": 64,
    "recipe.learning_rate": 0.05,
    "recipe.momentum": 0.8,
    "recipe.weight_decay": 0.0,
    "recipe.drops": [0.5],
    "recipe.padding": 2,
    "recipe.flip": False,
    "recipe.warm_up.depth": 20,
    "recipe.warm_up.learning_rate": 0.02,
    "recipe.warm_up.until_error": 70,
    "optimizer.name": "AdamW",
    "optimizer.keywords": {"amsgrad": True},
    "precision": "tf32",
    "compile": True,
    "deterministic": True,
    "evaluate_every": 100,
    "constructed.depth": 14,
    "constructed.weights": "f" * 64,
}
NOT_IDENTIFYING: dict[str, Any] = {
    "device": "cpu",
    "threads": 2,
    "cuda_graph": True,
    "activation_checkpointing": True,
    "checkpoint_seconds": 0,
    "logger": "tensorboard",
    "outputs": "elsewhere",
    "experiment": "other",
    "tag": "word",
    "recipe.name": "mine",
    "data.root": "elsewhere",
    "data.download": False,
    "data.cache": "elsewhere",
    "data.archive": "here.tar.gz",
    "data.url": ["http://localhost/other.tar.gz"],
    "data.sha256": "f" * 64,
    "data.resident": "host",
    "constructed.run": "elsewhere",
}
CONSTRUCTED = {"depth": 8, "weights": "0" * 64, "run": "here"}


def with_and_without(key: str, value: Any) -> tuple[Config, Config]:
    """Two configurations that differ in one key."""
    base: dict[str, Any] = {}
    change = {key: value}
    if key.startswith("constructed."):
        base["constructed"] = CONSTRUCTED
        change = {"constructed": CONSTRUCTED | {key.partition(".")[2]: value}}
    elif key.startswith("optimizer."):
        base["optimizer"] = {"name": "Adam", "keywords": {}}
        change = {"optimizer": base["optimizer"] | {key.partition(".")[2]: value}}
    elif key == "model.name":
        change["model.shortcut"] = None
    return from_mapping(changed(base | change)), from_mapping(changed(base))


def keys_of(schema: Any, prefix: str = "") -> Iterator[str]:
    """All keys of a schema, nested ones with dots."""
    types = get_type_hints(schema)
    for field in fields(schema):
        groups = [t for t in (types[field.name], *get_args(types[field.name])) if is_dataclass(t)]
        if groups:
            yield from keys_of(groups[0], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_every_key_is_known_to_matter_or_not() -> None:
    known = CHANGES_NUMBERS.keys() | NOT_IDENTIFYING.keys()
    assert set(keys_of(Config)) - {"extensions"} == known  # for those see test_extension.py
    assert not CHANGES_NUMBERS.keys() & NOT_IDENTIFYING.keys()


@pytest.mark.parametrize(("key", "value"), CHANGES_NUMBERS.items())
def test_what_changes_numbers_changes_the_identity(key: str, value: Any) -> None:
    other, base = with_and_without(key, value)
    assert config_hash(other) != config_hash(base)
    if isinstance(value, dict):
        ((name, value),) = value.items()
        key = f"{key}.{name}"
    assert differences(other, base)[key] == (value, differences(base, other)[key][0])


@pytest.mark.parametrize(("key", "value"), NOT_IDENTIFYING.items())
def test_what_only_says_where_a_run_happens_does_not(key: str, value: Any) -> None:
    other, base = with_and_without(key, value)
    assert other != base
    assert config_hash(other) == config_hash(base)
    assert differences(other, base) == {}


def test_a_constructed_net_is_another_run_and_may_be_untrained() -> None:
    made = from_mapping(changed({"constructed": CONSTRUCTED, "recipe.iterations": 0}))
    trained = from_mapping(changed({"constructed": CONSTRUCTED}))
    assert len({config_hash(c) for c in (made, trained, from_mapping(BASE))}) == 3


def test_differences_have_both_values() -> None:
    here, there = of("recipe.learning_rate", 0.05), from_mapping(BASE)
    assert differences(here, there) == {"recipe.learning_rate": (0.05, 0.1)}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "residual-20-s0"),
        ({"model": {"name": "plain"}, "depth": 56, "seed": 3}, "plain-56-s3"),
        ({"tag": "lr0.05"}, "residual-20-s0-lr0.05"),
    ],
)
def test_a_run_is_named_by_model_depth_seed_and_tag(changes: dict[str, Any], name: str) -> None:
    config = from_mapping(changed(changes))
    assert config.name == name
    assert config.directory == Path("outputs/cifar10") / name


def test_outputs_may_be_in_the_home_folder() -> None:
    assert of("outputs", "~/runs").directory == Path.home() / "runs/cifar10/residual-20-s0"
