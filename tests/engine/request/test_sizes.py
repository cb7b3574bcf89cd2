"""Sizes: what people write for an amount of memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoframe.engine.errors import ConfigError
from isoframe.engine.request.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (5, 5),
        ("6GiB", 6 * 2**30),
        ("6GB", 6 * 10**9),
        ("512MiB", 2**29),
        (" 1.5 gib ", 3 * 2**29),
        (".5TiB", 2**39),
        ("1048576", 2**20),
        ("3kB", 3000),
        ("1.0000000000001TiB", 2**40),
    ],
)
def test_sizes_are_powers_of_1024_with_i_and_of_1000_without(text: str | int, expected: int) -> None:
    assert parse_size("vram", text) == expected


@pytest.mark.parametrize(
    "value", [0, -1, "-1", "0GiB", "", "six", "6 apples", "1e9", "inf", "nan", True, "6 GiB 2", None, 6.0]
)
def test_what_is_no_positive_amount_is_refused_by_the_name_of_its_option(value: object) -> None:
    with pytest.raises(ConfigError, match="vram must be a positive size"):
        parse_size("vram", value)  # type: ignore[arg-type]  # that is the point


def test_more_than_there_is_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"at most the 6\.00 GiB that RTX 3060 Laptop has, got '8GiB'"):
        parse_size("vram", "8GiB", available=6 * 2**30, owner="RTX 3060 Laptop")
    assert parse_size("vram", "6GiB", available=6 * 2**30) == 6 * 2**30


@given(st.integers(1, 2**50), st.sampled_from(["KiB", "MiB", "GiB", "KB", "GB"]))
def test_whole_numbers_are_exact(number: int, unit: str) -> None:
    base = 1024 if "i" in unit else 1000
    assert parse_size("ram", f"{number}{unit}") == number * base ** {"K": 1, "M": 2, "G": 3}[unit[0]]


def test_sizes_are_shown_in_the_unit_that_suits() -> None:
    assert [format_size(n) for n in (3, 512 * 2**20, 6 * 2**30)] == ["3 B", "512 MiB", "6.00 GiB"]
