import pytest

from resrepro.paper.published import AKAMASTER, AMARTYN, PUBLISHED, Published

# As published: test error % in the paper; a-martyn/resnet's final training and test error;
# akamaster's test error.
TABLE = {
    ("plain", 20): (9.5, (0.74, 9.69), None),
    ("plain", 32): (10, (0.79, 10.04), None),
    ("plain", 44): (12, (2.76, 11.56), None),
    ("plain", 56): (13.5, (3.33, 13.07), None),
    ("plain", 110): (None, None, None),
    ("residual", 20): (8.75, (0.40, 8.04), 8.27),
    ("residual", 32): (7.51, (0.12, 7.79), 7.37),
    ("residual", 44): (7.17, (0.05, 7.51), 6.90),
    ("residual", 56): (6.97, (0.04, 7.46), 6.61),
    ("residual", 110): (6.61, None, 6.32),
    ("residual", 1202): (7.93, None, 6.18),
}


def test_there_are_no_other_nets() -> None:
    assert PUBLISHED.keys() == TABLE.keys()


@pytest.mark.parametrize("net", TABLE)
def test_numbers_are_as_published(net: tuple[str, int]) -> None:
    there = PUBLISHED[net]
    assert (there.paper, there.amartyn, there.akamaster) == TABLE[net]


@pytest.mark.parametrize("net", [net for net in TABLE if net != ("plain", 110)])
def test_the_text_says_the_number_and_what_it_is(net: tuple[str, int]) -> None:
    there = PUBLISHED[net]
    read_off = net[0] == "plain"
    number = f"{there.paper:g}" if read_off else f"{there.paper:.2f}"
    assert there.paper_text.lstrip("~").split()[0].rstrip(",") == number
    assert there.paper_text.startswith("~") == read_off
    assert ("figure 6" in there.paper_text) == read_off


def test_resnet_110_says_mean_deviation_seeds_and_best() -> None:
    assert PUBLISHED["residual", 110].paper_text == "6.61 ± 0.16 (5), best 6.43"


def test_plain_110_has_no_number_to_compare_with() -> None:
    assert PUBLISHED["plain", 110] == Published(None, "> 60 (not displayed)")


def test_sources_say_what_kind_of_error_theirs_is() -> None:
    assert AMARTYN.startswith("a-martyn/resnet")
    assert AKAMASTER.startswith("akamaster/")
    assert "best" in AKAMASTER
