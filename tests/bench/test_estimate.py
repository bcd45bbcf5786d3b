"""The estimate is linear where it says so, and the lanes are scheduled as a brute force would."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.data.dataset import load_dataset
from bench.data.splits import make_splits
from bench.environment import Hardware
from bench.estimate import (
    Workload,
    estimate,
    estimate_suite,
    format_seconds,
    lanes,
    phantom_workload,
    resources,
    running_order,
    schedule,
    workers_of,
    workload_of,
)
from bench.methods import METHODS, make_spec
from bench.spec import PhantomSize
from experiments import SUITES
from experiments.costs import COSTS
from experiments.profiles import PROFILES

LAPTOP = PROFILES["laptop"]
CPU = Hardware(2, 8.0, ())


def cluster_of(*nodes):
    gpus = tuple(gpu for node in nodes for gpu in node.gpus)
    return Hardware(sum(node.cores for node in nodes), sum(node.memory_gib for node in nodes), gpus, nodes)


WORK = Workload(
    train_images=80,
    val_images=20,
    test_images=40,
    test_prompts=60,
    experts={("a", "x"): 50, ("b", "x"): 30},
    image_size=256,
)


def spec_of(method, **recipe):
    spec = make_spec(SUITES["main"], LAPTOP, method, "hiera_xt", 0, "0" * 12)
    return spec.model_copy(update={"recipe": spec.recipe.model_copy(update=recipe)}) if recipe else spec


def slope(low, high):
    return estimate(high, WORK, CPU) - estimate(low, WORK, CPU)


def test_every_method_has_its_costs():
    assert set(COSTS) == set(METHODS)
    for method in METHODS:
        assert estimate(spec_of(method), WORK, CPU) > COSTS[method].startup


@pytest.mark.parametrize("method", ["boltzformer", "sam"])
def test_training_costs_are_linear_in_steps_batch_and_pixels(method):
    def at(steps, batch, size):
        return spec_of(method, steps=steps, batch_images=batch, image_size=size, validate_every=10**9)

    unit = slope(at(100, 8, 256), at(200, 8, 256))
    assert unit == pytest.approx(100 * 8 * COSTS[method].train_image)
    assert slope(at(200, 8, 256), at(300, 8, 256)) == pytest.approx(unit)
    assert slope(at(100, 16, 256), at(200, 16, 256)) == pytest.approx(2 * unit)
    assert slope(at(100, 8, 512), at(200, 8, 512)) == pytest.approx(4 * unit)


def test_nnunet_is_linear_in_experts_iterations_batch_and_patch():
    spec = spec_of("nnunet")

    def budget(**update):
        return spec.model_copy(update={"nnunet": spec.nnunet.model_copy(update=update)})

    base = budget(epochs=2, iterations_per_epoch=50, batch_size=4, patch_size=128)
    unit = estimate(base, WORK, CPU) - estimate(
        budget(epochs=1, iterations_per_epoch=50, batch_size=4, patch_size=128), WORK, CPU
    )
    assert unit == pytest.approx(2 * 50 * 4 * COSTS["nnunet"].train_patch / 4)
    assert slope(
        base, base.model_copy(update={"nnunet": base.nnunet.model_copy(update={"epochs": 3})})
    ) == pytest.approx(unit)
    wide = base.nnunet.model_copy(update={"patch_size": 256})
    assert slope(base, base.model_copy(update={"nnunet": wide})) == pytest.approx(3 * 2 * unit)
    # a patch is never larger than the image
    huge = base.nnunet.model_copy(update={"patch_size": 1024})
    assert slope(base.model_copy(update={"nnunet": wide}), base.model_copy(update={"nnunet": huge})) == 0


def test_a_multiclass_model_is_trained_once_for_all_objects_of_a_data_set():
    work = replace(WORK, experts={("a", "x"): 50, ("a", "y"): 20, ("b", "x"): 30})
    without = replace(WORK, experts={("a", "x"): 50, ("b", "x"): 30})
    assert estimate(spec_of("nnunet_multiclass"), work, CPU) == estimate(spec_of("nnunet_multiclass"), without, CPU)
    assert estimate(spec_of("nnunet"), work, CPU) > estimate(spec_of("nnunet"), without, CPU)


def test_experts_spread_over_the_lanes():
    one, two, eight = (Hardware(cores, 8.0, ()) for cores in (1, 2, 8))
    spec = spec_of("nnunet")
    alone = estimate_suite([spec], WORK, LAPTOP, one)
    assert alone == estimate(spec, WORK, one)
    assert estimate_suite([spec], WORK, LAPTOP, two) == pytest.approx(alone / 2)
    assert estimate_suite([spec], WORK, LAPTOP, eight) == pytest.approx(alone / 2), "there are two experts"


def test_a_pre_trained_model_costs_its_images_and_prompts_whatever_their_size():
    spec, cost = spec_of("biomedparse"), COSTS["biomedparse"]
    expected = cost.startup + 40 * cost.predict_image + 60 * cost.predict_prompt
    assert estimate(spec, WORK, CPU) == estimate(spec, replace(WORK, image_size=64), CPU) == expected
    assert estimate(spec, replace(WORK, train_images=800, val_images=200), CPU) == expected


def test_a_gpu_is_faster():
    spec = spec_of("boltzformer")
    assert estimate(spec, WORK, Hardware(16, 64.0, ("A",))) < estimate(spec, WORK, CPU)


def test_the_work_of_a_split_is_counted(squares):
    splits = make_splits([load_dataset(squares)])
    assert workload_of(splits) == Workload(
        train_images=4,
        val_images=1,
        test_images=2,
        test_prompts=4,
        experts={("squares", "large square"): 4, ("squares", "dot"): 4},
        image_size=(20 * 30) ** 0.5,
    )


def test_the_work_of_a_phantom_before_it_is_there():
    work = phantom_workload(
        PhantomSize(image_size=64, patients=10, test_patients=3, slices=2), {"a": ("x", "y"), "b": ("z",)}
    )
    assert (work.train_images, work.val_images, work.test_images, work.test_prompts) == (32, 8, 12, 18)
    assert work.experts == {("a", "x"): 16, ("a", "y"): 16, ("b", "z"): 16}


@pytest.mark.parametrize(
    ("cpus", "gpus", "hardware", "count"),
    [
        (1, 0, CPU, 2),
        (2, 0, CPU, 1),
        (8, 0, CPU, 1),
        (8, 1, Hardware(16, 64.0, ("A",)), 1),
        (2, 0.5, Hardware(16, 64.0, ("A",)), 2),
        (8, 1, Hardware(16, 64.0, ("A",) * 4), 2),
        (1, 1, CPU, 2),
        # a cluster: what is left of a node is of no use to a trial
        (8, 1, cluster_of(*[Hardware(12, 64.0, ("A",))] * 4), 4),
        (4, 1, cluster_of(Hardware(16, 64.0, ("A", "A")), Hardware(64, 64.0, ())), 2),
        (4, 0, cluster_of(Hardware(6, 64.0, ()), Hardware(2, 64.0, ())), 1),
        (1, 0, cluster_of(Hardware(8, 7.0, ()), Hardware(8, 3.0, ())), 2),
    ],
)
def test_lanes(cpus, gpus, hardware, count):
    profile = LAPTOP.model_copy(update={"cpus_per_trial": cpus, "gpus_per_trial": gpus})
    assert lanes(profile, hardware) == count


def test_a_trial_never_asks_for_more_than_a_machine_has():
    one_gpu = Hardware(16, 64.0, ("A",))
    assert resources(8, 1, 0, CPU) == {"cpu": 2}
    assert resources(8, 1, 16, one_gpu) == {"cpu": 8, "gpu": 1, "memory": 16 * 2**30}
    assert resources(0.5, 0.25, 100, one_gpu) == {"cpu": 0.5, "gpu": 0.25, "memory": 64 * 2**30}
    assert resources(8, 0, 0, cluster_of(Hardware(4, 8.0, ()), Hardware(6, 8.0, ()))) == {"cpu": 6}
    # the machines with a GPU, however small they are
    assert resources(8, 2, 0, cluster_of(Hardware(64, 8.0, ()), Hardware(4, 8.0, ("A",)))) == {"cpu": 4, "gpu": 1}


SECONDS = st.lists(st.integers(1, 30), min_size=1, max_size=6)


@given(seconds=SECONDS, count=st.integers(1, 3))
def test_longest_first_is_near_the_best_schedule_and_never_below_it(seconds, count):
    best = min(
        max(sum(s for s, lane in zip(seconds, place, strict=True) if lane == number) for number in range(count))
        for place in itertools.product(range(count), repeat=len(seconds))
    )
    got = schedule(sorted(seconds, reverse=True), count)
    # Graham's bound for longest processing time first
    assert best <= got <= best * (4 / 3 - 1 / (3 * count)) + 1e-9


def test_a_suite_is_its_trials_on_the_lanes():
    specs = [spec_of(method) for method in METHODS]
    each = [estimate(spec, WORK, CPU) for spec in specs]
    total = estimate_suite(specs, WORK, LAPTOP, CPU)
    assert sum(each) / 2 <= total <= sum(each) / 2 + max(each) / 2
    assert estimate_suite(specs, WORK, LAPTOP, Hardware(1, 8.0, ())) == pytest.approx(sum(each))
    ordered = [estimate(spec, WORK, CPU) for spec in running_order(specs, WORK, CPU)]
    assert ordered == sorted(each, reverse=True)
    assert estimate_suite([], WORK, LAPTOP, CPU) == 0


def test_trials_begin_seed_by_seed_and_the_longest_first_within_one():
    names = ("location_prior", "boltzformer", "sam")
    specs = [spec_of(name).model_copy(update={"seed": seed}) for seed in (2, 0) for name in names]
    order = [(spec.seed, spec.method) for spec in running_order(specs, WORK, CPU)]
    by_cost = sorted(names, key=lambda name: -estimate(spec_of(name), WORK, CPU))
    assert order == [(seed, name) for seed in (2, 0) for name in by_cost]
    assert by_cost[-1] == "location_prior"
    each = [estimate(spec_of(name), WORK, CPU) for name in by_cost]
    assert estimate_suite(specs, WORK, LAPTOP, CPU) == pytest.approx(schedule(each * 2, 2))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (44.6, "45 s"),
        (89, "89 s"),
        (125, "2 min"),
        (3600, "60 min"),
        (3 * 3600 + 290, "3 h 05 min"),
    ],
)
def test_durations_in_words(seconds, text):
    assert format_seconds(seconds) == text


def test_workers_are_as_many_as_there_is_room_for():
    def profile(workers, **changes):
        return LAPTOP.model_copy(update={"cpus_per_trial": 4, "workers_per_trial": workers} | changes)

    gpus = {"gpus_per_trial": 1, "memory_gib_per_trial": 0}
    two_nodes = cluster_of(*[Hardware(16, 64.0, ("A",) * 4)] * 2)
    assert [workers_of(profile(n, **gpus), two_nodes) for n in (1, 3, 8, 32)] == [1, 3, 8, 8]
    assert [lanes(profile(n, **gpus), two_nodes) for n in (1, 3, 8, 32)] == [8, 2, 1, 1]
    assert workers_of(profile(32), CPU) == 1, "a machine smaller than a worker still trains"
    few = LAPTOP.recipe.model_copy(update={"batch_images": 2})
    assert workers_of(profile(8, recipe=few, **gpus), two_nodes) == 2, "an image for each"


def test_workers_share_training_and_not_the_prediction():
    spec = spec_of("boltzformer")
    alone, two, four = (estimate(spec, WORK, CPU, workers) for workers in (1, 2, 4))
    assert alone - two == pytest.approx(2 * (two - four)) and alone > two > four > COSTS["boltzformer"].startup
