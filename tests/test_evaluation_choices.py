"""Which choice a free answer names, answer by answer."""

import pytest

from revision.evaluation.choices import named_choice

LETTERS = ("A", "B", "C", "D")
ANIMALS = ("a dog", "the cat", "a cat and a dog", "an owl")


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("B", "B"),
        ("(B)", "B"),
        (" B. ", "B"),
        ("B. the cat", "B"),
        ("B: the cat, not A", "B"),
        ("B\nbecause it has whiskers", "B"),
        ("**C**", "C"),
        ("The answer is D.", "D"),
        ("Answer: (C) a cat and a dog", "C"),
        ("First I thought the answer is A, but the correct answer is B", "B"),
        ("So we get \\boxed{D}", "D"),
        ("Option C", "C"),
        ("It must be C because of the tail", "C"),
        ("A", "A"),
        ("A.", "A"),
        ("A dog", "A"),  # by its text, which is that of A: as a letter it is an article
        ("A bird", None),
        ("It is an owl", "D"),
        ("the cat", "B"),
        ("Either B or C", None),
        ("b", None),
        ("a cat and a dog", "C"),  # the whole answer comes before what stands in it
        ("I do not know", None),
        ("", None),
        ("E", None),
        ("Vitamin B and D", None),
    ],
)
def test_letters(answer: str, names: str | None) -> None:
    assert named_choice(answer, LETTERS, ANIMALS) == names


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("Yes", "Yes"),
        ("no.", "No"),
        ("Yes, there is no doubt", "Yes"),
        ("No, it says yes nowhere", "No"),
        ("There is no dog", "No"),
        ("The answer is no", "No"),
        ("Nobody knows", None),
        ("I would say yes", "Yes"),
        ("yes and no", "Yes"),  # it begins with it
        ("Maybe yes, maybe no", None),
    ],
)
def test_yes_and_no(answer: str, names: str | None) -> None:
    assert named_choice(answer, ("Yes", "No")) == names


def test_choices_that_stand_for_themselves() -> None:
    assert named_choice("It is red.", ("red", "dark red", "blue")) == "red"
    assert named_choice("Dark red.", ("red", "dark red")) == "dark red"
    assert named_choice("It is dark red", ("red", "dark red")) is None, "both stand in it"
    assert named_choice("Two", ("one", "two")) == "two"
    assert named_choice("twofold", ("one", "two")) is None
