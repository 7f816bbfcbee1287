"""Which choice a free answer names, answer by answer."""

import pytest

from revision.evaluation.choices import named_choice, same_letters

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
        ("Answer: B because C is too small", "B"),
        ("The answer is C, since option D shows a cat", "C"),
        ("The answer is D, because choice A is a cat.", "D"),
        ("The answer is: A dog", "A"),  # by its text alone
        ("It is option D", "D"),
        ("B. Unlike option A, it has whiskers", "B"),
        ("A or B", None),
        ("A and C", None),
        ("A is correct.", "A"),
        ("B is correct.", "B"),
        ("It is A because of the tail", "A"),
        ("A, B, and C are all wrong; D", None),
        ("A-frame roof", None),
        ("B) the cat", "B"),
        ("B, the cat", "B"),
        ("The answer is A rather than B", "A"),
        ("Answer: A rather than B", "A"),
        ("Choice A fits better than B", "A"),
        ("The answer is A and nothing else, B is wrong", "A"),
        ("I choose A over B", None),
        ("A but not B", None),
        ("Neither A nor B", None),
        ("A matches the picture, B does not", None),
        ("It shows A because B has whiskers", None),
        ("A quick look says that it is B", "B"),
        ("\u9009B", "B"),
        ("\u7b54\u6848\u662fC\u3002", "C"),
        ("B\u00e4r", None),
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


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("I do not know.", None),
        ("I cannot see the picture.", None),
        ("I'm not sure, maybe C", "C"),
        ("I think it is C", "C"),
        ("I", "I"),
        ("I.", "I"),
        ("The answer is I", "I"),
        ("(I) text", "I"),
    ],
)
def test_the_ninth_letter_is_a_pronoun_too(answer: str, names: str | None) -> None:
    assert named_choice(answer, tuple("ABCDEFGHIJ"), tuple(f"text of {number}" for number in range(10))) == names


@pytest.mark.parametrize(
    ("answer", "texts", "names"),
    [
        ("Solution B", ("neither; they are the same", "Solution A", "Solution B"), "C"),
        ("It is solution B", ("neither; they are the same", "Solution A", "Solution B"), "C"),
        ("Vitamin D", ("Vitamin D", "Vitamin K", "Vitamin A"), "A"),
        ("2", ("-2", "3", "2"), "C"),
        ("-5", ("5", "-5", "0"), "B"),
        ("It is -5 degrees", ("5", "-5", "0"), "B"),
        ("0.5", ("5", "0.5", "0"), "B"),
        ("It is a dark red car", ("red", "dark red", "blue"), "B"),
        ("a red and a blue one", ("red", "dark red", "blue"), None),
        ("C", ("B", "C", "A"), "C"),  # a letter is a choice before it is a text
        ("Red, I would say A", ("red", "dark red", "blue"), "A"),
    ],
)
def test_texts_come_before_letters_in_them(answer: str, texts: tuple[str, ...], names: str | None) -> None:
    assert named_choice(answer, ("A", "B", "C"), texts) == names


@pytest.mark.parametrize("letter", "ABCD")
@pytest.mark.parametrize(
    "says", ["{}", "({})", "{}.", "{}) something", "The answer is {}", "Answer: {}", "{} is right", "I choose {}",
             "It must be {} since it fits", "\\boxed{{{}}}", "**{}**"]
)  # fmt: skip
def test_every_letter_is_read_alike(says: str, letter: str) -> None:
    texts = ("one thing", "another thing", "a third", "a fourth")
    assert named_choice(says.format(letter), ("A", "B", "C", "D"), texts) == letter


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("A, C", True),
        ("C, A", True),
        ("A and C", True),
        ("AC", True),
        ("C", False),
        ("A, B, C", False),
        ("a, c", False),
        ("", False),
    ],
)
def test_several_letters_in_any_order(answer: str, same: bool) -> None:
    assert same_letters(answer, "A, C") is same


def test_choices_that_stand_for_themselves() -> None:
    assert named_choice("It is red.", ("red", "dark red", "blue")) == "red"
    assert named_choice("Dark red.", ("red", "dark red")) == "dark red"
    assert named_choice("It is dark red", ("red", "dark red")) == "dark red"
    assert named_choice("Two", ("one", "two")) == "two"
    assert named_choice("twofold", ("one", "two")) is None
