"""The split of slides: 8:1:1, the same on every machine, patients whole."""

from collections import Counter

import pytest

from bundle.data.splits import SECTIONS, TESTING, TRAINING, VALIDATION, split_slides


def slides(count: int) -> dict[str, str | None]:
    return {f"slide {index}": None for index in range(count)}


def test_a_hundred_slides_are_split_eight_to_one_to_one() -> None:
    """The paper's shares; a rule that drifts makes figures incomparable."""
    assert Counter(split_slides(slides(100)).values()) == {TRAINING: 80, VALIDATION: 10, TESTING: 10}


@pytest.mark.parametrize("count", [3, 4, 9, 10, 11, 14, 15, 19, 20, 37])
def test_no_section_is_ever_empty(count: int) -> None:
    """A training without validation slides ends after hours with a division by zero."""
    counts = Counter(split_slides(slides(count)).values())
    assert set(counts) == set(SECTIONS) and counts[TRAINING] >= counts[VALIDATION] >= 1


def test_the_order_in_which_slides_are_found_does_not_matter() -> None:
    """File systems list folders in any order: slides of the test set would wander into training."""
    found = slides(23)
    assert split_slides(found) == split_slides(dict(reversed(found.items())))
    # Natural order: the tenth slide is slide 9, the fifth is slide 4; as text slide 10 would stand before slide 2.
    assert split_slides(found)["slide 9"] == TESTING and split_slides(found)["slide 4"] == VALIDATION


def test_slides_of_one_patient_stay_together() -> None:
    """Two slides of one tumour in training and testing: the test measures memory."""
    patients = {f"s{index}": f"P{index // 3}" for index in range(60)}
    sections = split_slides(patients)
    for patient in set(patients.values()):
        assert len({sections[slide] for slide, one in patients.items() if one == patient}) == 1
    assert Counter(sections.values()) == {TRAINING: 48, VALIDATION: 6, TESTING: 6}


@pytest.mark.parametrize(("patients", "count"), [({"only": None}, 1), ({"a": None, "b": None}, 2),
                                                 ({"a": "P1", "b": "P1", "c": "P1", "d": "P2"}, 2)])
def test_too_few_slides_are_refused(patients: dict[str, str | None], count: int) -> None:
    """One slide in all three sections would be a leak, in one section an empty training."""
    with pytest.raises(ValueError, match=rf"at least 3 slides or patients, got {count} \(.*--section"):
        split_slides(patients)
