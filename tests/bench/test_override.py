"""--set FIELD=VALUE."""

import pytest

from bench.errors import UserError
from bench.override import with_overrides
from experiments.profiles import LAPTOP, PROFILES


def test_fields_of_every_part():
    texts = ["steps=900", "recipe.learning_rate=5e-4", "model.width=64", "nnunet.features=[8, 16]", "nnunet.epochs=3"]
    texts += ["phantom.test_patients=60", "cpus_per_trial=2", "micro_batch=4", "dataset_sampling=uniform"]
    changed = with_overrides(LAPTOP, texts)
    assert (changed.recipe.steps, changed.recipe.learning_rate, changed.model.width) == (900, 5e-4, 64)
    assert (changed.nnunet.features, changed.nnunet.epochs, changed.phantom.test_patients) == ((8, 16), 3, 60)
    assert (changed.cpus_per_trial, changed.micro_batch, changed.recipe.dataset_sampling) == (2, 4, "uniform")
    assert changed.name == "laptop" and changed.title.endswith("; " + ", ".join(texts))
    same = {name: getattr(LAPTOP.recipe, name) for name in ("steps", "learning_rate", "dataset_sampling")}
    assert changed.recipe.model_copy(update=same) == LAPTOP.recipe and changed.objects == LAPTOP.objects


@pytest.mark.parametrize("name", PROFILES)
def test_without_changes_a_profile_is_itself(name):
    assert with_overrides(PROFILES[name], []) == PROFILES[name]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["stepps=3"], "unknown field of --set 'stepps': did you mean 'steps'"),
        (["model.widht=3"], "did you mean 'model.width'"),
        (["modle.width=3"], "unknown group of --set 'modle': did you mean 'model'"),
        (["steps=0"], "--set steps=0: the profile has an unusable recipe.steps"),
        (["steps=many"], "recipe.steps .*integer"),
        (["model.width=100"], "multiple of 32"),
        (["model.temperature=0"], "greater than 0"),
        (["cpus_per_trial=0"], "unusable cpus_per_trial .*greater than 0"),
        (["cpus_per_trial=NaN"], "unusable cpus_per_trial"),
        (["memory_gib_per_trial=-1"], "unusable memory_gib_per_trial"),
        (["gpus_per_trial=1.5"], "unusable gpus_per_trial .*whole number"),
        (["cpus_per_expert=0"], "unusable cpus_per_expert"),
        (["steps"], "write FIELD=VALUE"),
        (["steps="], "write FIELD=VALUE"),
        (["steps=1", "recipe.steps=2"], "is given twice"),
        (["name=mine"], "unknown field of --set 'name'"),
    ],
)
def test_what_does_not_fit_is_told(texts, message):
    with pytest.raises(UserError, match=message):
        with_overrides(LAPTOP, texts)


def test_the_trials_train_by_it_and_the_report_says_so(bench, squares, tmp_path):
    words = ["run", "--suite", "smoke", "--data", squares, "--methods", "seem", "--executor", "local"]
    words += ["--set", "steps=4", "--set", "batch_images=2", "--runs-dir", tmp_path]
    done = bench(*words, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 steps x 2 images" in next(tmp_path.glob("smoke-*/report/main_table.csv")).read_text()
    suite = next(tmp_path.glob("smoke-*/suite.json")).read_text()
    assert "--set steps=4 --set batch_images=2" in suite
    plain = bench(*words[:-6], "--runs-dir", tmp_path, "--dry-run").stdout
    assert "1 of 1 trials to run" in plain
    (run,) = tmp_path.glob("smoke-*/seem-*")
    assert f"another --name: {run.name}" in plain and "leaving  1 finished run of another recipe" in plain
    assert "leaving" not in bench(*words, "--dry-run").stdout
