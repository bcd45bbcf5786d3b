import csv

import pytest

from bench.environment import Hardware
from bench.methods import METHODS, make_spec
from experiments import SUITES, paper, profiles
from models.backbones import BACKBONES


def test_suites_name_methods_and_profiles_that_exist():
    for name, suite in SUITES.items():
        assert suite.name == name
        assert set(suite.methods) <= set(METHODS)
        assert suite.profile is None or suite.profile in profiles.PROFILES
    optional = {"nnunet_multiclass"}  # only for data sets whose objects do not overlap
    assert {method for suite in SUITES.values() for method in suite.methods} == set(METHODS) - optional


def test_profiles_name_backbones_and_objects_that_exist():
    for name, profile in profiles.PROFILES.items():
        assert profile.name == name
        assert set(profile.backbones) <= set(BACKBONES) == set(profiles.BACKBONE_LABELS)
        wanted = profile.objects or {}
        assert {(d, o) for d, objects in wanted.items() for o in objects} <= set(paper.TABLE_9)
    laptop = profiles.LAPTOP.objects
    assert set(laptop) == set(paper.DATASETS)
    assert sum(map(len, laptop.values())) >= 12
    assert all(1 <= len(objects) <= 3 for objects in laptop.values())
    assert profiles.GPU.objects is None is profiles.PAPER.objects
    assert len(paper.TABLE_9) == 38


@pytest.mark.parametrize(("gpus", "expected"), [((), "laptop"), (("H100",), "gpu"), (tuple(["A100"] * 32), "paper")])
def test_the_hardware_chooses_the_profile(gpus, expected):
    profile, reason = profiles.choose(Hardware(2, 24.0, gpus))
    assert profile.name == expected
    assert reason


def test_run_ids_follow_every_field():
    suite, profile = SUITES["main"], profiles.LAPTOP
    one = make_spec(suite, profile, "boltzformer", "hiera_xt", 0, "abc")
    assert one == make_spec(suite, profile, "boltzformer", "hiera_xt", 0, "abc")
    other = profile.model_copy(update={"model": profile.model.model_copy(update={"temperature": 2.0})})
    others = [
        make_spec(suite, profile, "boltzformer", "hiera_xt", 1, "abc"),
        make_spec(suite, profile, "boltzformer", "hiera_xt", 0, "abd"),
        make_spec(suite, profile, "seem", "hiera_xt", 0, "abc"),
        make_spec(suite, other, "boltzformer", "hiera_xt", 0, "abc"),
    ]
    assert len({spec.run_id for spec in [one, *others]}) == 5
    nnunet = make_spec(suite, profile, "nnunet", "hiera_xt", 0, "abc")
    assert (nnunet.backbone, nnunet.recipe, nnunet.model) == ("-", None, None)
    assert nnunet.run_id.startswith("nnunet-seed0-")


def rows(shared, name):
    with (shared / "paper" / name).open() as handle:
        return list(csv.reader(handle))[1:]


def test_the_papers_numbers_are_its_numbers(shared):
    assert {r[0]: tuple(map(float, r[1:])) for r in rows(shared, "table1_dice.csv")} == paper.TABLE_1
    assert {(r[0], r[1]): tuple(map(float, r[2:])) for r in rows(shared, "table2_by_size.csv")} == paper.TABLE_2
    ablations = rows(shared, "tables3-8_ablations.csv")
    assert {(r[1], r[2]): tuple(map(float, r[3:])) for r in ablations} == paper.TABLES_3_TO_8
    sizes = rows(shared, "table9_object_sizes.csv")
    assert {(r[0], r[1]): tuple(map(float, r[2:])) for r in sizes} == paper.TABLE_9
