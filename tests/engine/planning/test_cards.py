"""Cards: the table, and names as users, drivers and boxes write them."""

import pytest

from isoframe.engine.errors import ConfigError
from isoframe.engine.planning.machine import Card, card_of_device, cards, find_card


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("RTX 3060", "RTX 3060"),
        ("rtx3060", "RTX 3060"),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", "RTX 3060 Laptop"),
        ("RTX 3060 12GB", "RTX 3060"),
        ("rtx 5060 ti 16 GB", "RTX 5060 Ti"),
        ("NVIDIA H100 80GB HBM3", "H100"),
    ],
)
def test_a_card_is_found_by_any_of_its_names(name: str, card: str) -> None:
    assert find_card(name).name == card
    assert card_of_device(name) == find_card(card)


def test_a_number_alone_is_a_geforce_card() -> None:
    assert find_card("4090").name == "RTX 4090"
    assert find_card("5060 Ti").name == "RTX 5060 Ti"


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(ConfigError, match=r"got 'rtx 4091'; did you mean RTX 4090"):
        find_card("rtx 4091")


def test_an_unknown_device_gets_a_guess_that_says_so() -> None:
    card = card_of_device("Quadro Something")
    assert card.is_estimate
    assert card.name == "Quadro Something"
    assert not any(known.is_estimate for known in cards().values())


@pytest.mark.parametrize(
    "card", [card for card in cards().values() if card.name.startswith("RTX")], ids=lambda c: c.name
)
def test_geforce_rates_follow_from_each_other(card: Card) -> None:
    # Per multiprocessor and clock: 512 FLOP in bf16, 1024 in fp16 with fp16 accumulation, 2048 in int8.
    assert card.fp16_accumulate / card.bf16 == pytest.approx(2, rel=0.02)
    assert card.int8 / card.bf16 == pytest.approx(4, rel=0.02)
    assert (card.fp8 is None) == (card.capability == 86)
