import pytest

from bench.data.naming import names_another
from bench.data.prompts import PROMPTS, canonical

OBJECTS = {dataset: [name for where, name in PROMPTS if where == dataset] for dataset, _ in PROMPTS}


@pytest.mark.parametrize(("dataset", "name"), PROMPTS)
def test_no_prompt_of_the_suite_names_another_object(dataset, name):
    for prompt in PROMPTS[dataset, name]:
        assert names_another(prompt, name, OBJECTS[dataset]) is None, prompt


@pytest.mark.parametrize("dataset", OBJECTS)
def test_every_swap_of_two_objects_is_found(dataset):
    for name in OBJECTS[dataset]:
        for other in set(OBJECTS[dataset]) - {name}:
            assert names_another(canonical(dataset, other), name, OBJECTS[dataset]) == other


@pytest.mark.parametrize(
    ("prompt", "name", "found"),
    [
        ("left kidney in abdomen CT", "right kidney", "left kidney"),
        ("LEFT KIDNEY", "kidney", "left kidney"),
        ("kidney", "left kidney", "kidney"),
        ("kidney on the left side", "left kidney", None),
        ("left kidney and right kidney", "kidney", None),
        ("kidney in left lateral CT", "kidney", None),
        ("renal tissue of the left kidney", "kidney", "left kidney"),
        ("gall bladder in abdomen CT", "gallbladder", None),
        ("urinary bladder", "bladder", None),
        ("bladder in abdomen CT", "gallbladder", "bladder"),
        ("neoplasm of the pancreas", "tumor", None),
        ("pancreas in abdomen CT", "tumor", "pancreas"),
        ("tumor in the pancreas", "pancreas", "tumor"),
        ("in this slice the left kidney", "right kidney", None),  # too free a phrase to judge
    ],
)
def test_names_within_names_synonyms_and_places(prompt, name, found):
    objects = ["kidney", "left kidney", "right kidney", "bladder", "gallbladder", "pancreas", "tumor"]
    assert names_another(prompt, name, objects) == found
