"""The one form of a refusal."""

import pytest

from layerzoo.errors import Refusal, bad_value, nearest, unknown_name


def test_bad_value_says_what_got_expected_and_what_to_do():
    error = bad_value("num_heads", got=5, expected="a divisor of dim=64", do="Choose one of 1, 2, 4.")
    assert str(error) == "num_heads: got 5, expected a divisor of dim=64. Choose one of 1, 2, 4."
    assert isinstance(error, Refusal) and isinstance(error, ValueError) and error.exit_code == 2


@pytest.mark.parametrize("name, best", [("mhsaa", "mhsa"), ("NYSTROM", "nystrom"), ("poling", "pooling"), ("", "mhsa")])
def test_nearest_is_best_first(name, best):
    assert nearest(name, ["pooling", "nystrom", "mhsa"])[0] == best


def test_nearest_gives_three_and_breaks_ties_by_name():
    assert nearest("x", ["d", "c", "b", "a"]) == ["a", "b", "c"]
    assert nearest("x", ["b", "a"], count=1) == ["a"]


def test_unknown_name_has_the_three_nearest_and_the_call_that_lists_all():
    error = unknown_name("layers name", "mhsaa", ["mhsa", "mlp", "fourier", "nystrom"], "layerzoo.list_layers()")
    assert str(error).startswith("layers name: got 'mhsaa', expected a known name such as mhsa, ")
    assert str(error).endswith(". layerzoo.list_layers() lists all.") and str(error).count(",") == 3


def test_a_name_that_is_no_string_is_refused_too():
    assert str(unknown_name("layer", 3, ["a"], "list")) == "layer: got 3, expected a known name such as a. list lists all."
    assert str(unknown_name("layer", 3, [], "list")) == "layer: got 3, expected a known name, of which there is none yet. list lists all."


def test_what_a_terminal_would_act_on_is_escaped():
    error = bad_value("x/\x1b[2J\u202e\udcff", got="é\n", expected="a\tb", do="Do.")
    assert str(error) == r"x/\x1b[2J\u202e\udcff: got é" + "\n" + r", expected a\tb. Do."
