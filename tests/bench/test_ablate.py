"""Ablations as specs: one field changes, the profile's own value is the shared base run."""

import pytest

from bench.ablate import variant_now, variants
from bench.errors import UserError
from bench.methods import make_spec
from experiments.ablations import ABLATIONS, SUITE
from experiments.paper import TABLES_3_TO_8
from experiments.profiles import PROFILES


@pytest.fixture(params=["laptop", "smoke", "paper"])
def base(request):
    profile = PROFILES[request.param]
    return make_spec(SUITE, profile, "boltzformer", profile.backbones[0], 0, "0" * 12)


@pytest.mark.parametrize("name", ABLATIONS)
def test_only_the_one_field_changes(name, base):
    ablation = ABLATIONS[name]
    part, field = ablation.field.split(".")
    specs = variants(ablation, base)
    assert len({spec.hash for spec in specs.values()}) == len(specs) == len(ablation.values)
    for label, spec in specs.items():
        if spec.variant is None:
            assert spec is base
            continue
        assert spec.variant == f"{name}={label}" and spec.row == f"boltzformer {name}={label}"
        changed, own = getattr(spec, part).model_dump(), getattr(base, part).model_dump()
        assert {key for key in own if own[key] != changed[key]} == {field}
        back = spec.model_copy(update={part: getattr(base, part), "variant": None})
        assert back == base
        assert variant_now(spec, ablation, base) == spec


def test_the_papers_values_are_those_of_its_tables():
    for name, ablation in ABLATIONS.items():
        paper = [value for table, value in TABLES_3_TO_8 if table == name]
        assert (ablation.table is None) == (not paper)
        if paper:
            assert list(ablation.values) == paper


def test_the_papers_profile_has_the_papers_defaults():
    profile = PROFILES["paper"]
    base = make_spec(SUITE, profile, "boltzformer", "hiera_s", 0, "0" * 12)
    default = {"attention": "boltzmann sampling", "temperature": "1", "samples": "10%", "queries": "101"}
    default |= {"prior": "text-conditioned", "pigma": "with pixel grounded correction", "annealing": "inverse (paper)"}
    for name, label in default.items():
        assert variants(ABLATIONS[name], base)[label] is base


def test_values_of_the_command_line(base):
    found = variants(ABLATIONS["temperature"], base, ["0.1", "1", "4"])
    assert [spec.model.temperature for spec in found.values()] == [0.1, 1.0, 4.0]
    assert found["1"] is base and found["4"].variant == "temperature=4"
    assert variant_now(found["4"], ABLATIONS["temperature"], base) == found["4"]
    assert variants(ABLATIONS["samples"], base, ["2%"])["2%"].model.sampling_ratio == 0.02
    assert variants(ABLATIONS["prior"], base, ["unconditioned"])["unconditioned"].model.text_prior is False
    label, own = variants(ABLATIONS["size"], base, ["2"])
    assert label == f"{2 * base.recipe.image_size} px" and own == f"{base.recipe.image_size} px"


def test_the_profiles_own_value_is_always_there_to_be_compared_with(base):
    found = variants(ABLATIONS["attention"], base, ["full attention"])
    assert list(found) == ["full attention", "boltzmann sampling"] and found["boltzmann sampling"] is base
    assert variants(ABLATIONS["temperature"], base, ["3"])["1"] is base
    odd = base.model_copy(update={"model": base.model.model_copy(update={"temperature": 0.7})})
    assert variants(ABLATIONS["temperature"], odd, ["3"])["0.7"] is odd


@pytest.mark.parametrize(
    ("name", "text"),
    [("temperature", "hot"), ("temperature", "0"), ("queries", "2.5"), ("queries", "-1"), ("attention", "sparse"),
     ("annealing", "step"), ("samples", "ten%"), ("size", "big"), ("temperature", "nan"), ("samples", "10"),
     ("samples", "101%"), ("size", "512")],
)  # fmt: skip
def test_values_that_cannot_be(name, text, base):
    with pytest.raises(UserError, match=f"--values: {name}"):
        variants(ABLATIONS[name], base, [text])


@pytest.mark.parametrize(
    ("words", "message"),
    [(("temprature",), "did you mean 'temperature'"), (("all", "--values", "1,2"), "--values goes with one ablation")],
)
def test_mistakes_of_the_command(bench, words, message):
    done = bench("ablate", *words)
    assert done.returncode == 2 and message in done.stderr


def test_the_plan_shares_the_run_of_the_profiles_own_values(bench, tmp_path):
    done = bench("ablate", "all", "--suite", "smoke", "--dry-run", "--runs-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[:2] for line in done.stdout.splitlines() if line.lstrip().startswith("boltzformer")]
    assert len(rows) == 1 + sum(len(ablation.values) - 1 for ablation in ABLATIONS.values())
    assert sum("=" not in row[1] for row in rows) == 1


@pytest.mark.slow
def test_ablations_from_the_command_to_the_table(bench, tmp_path):
    """The second command finds the first one's run of the profile's own values, and keeps its table."""
    local = ("--suite", "smoke", "--executor", "local", "--runs-dir", tmp_path)
    first = bench("ablate", "prior", *local)
    assert first.returncode == 0, first.stderr
    assert "Ablation: Query prior" in first.stdout and "2 of 2 trials to run" in first.stdout
    second = bench("ablate", "temperature", "--values", "1,3", *local)
    assert second.returncode == 0, second.stderr
    assert "1 of 2 trials to run" in second.stdout and "Ablation: Base temperature" in second.stdout
    report = tmp_path / "ablate-smoke" / "report"
    assert {"ablation_prior.md", "ablation_prior.tex", "ablation_temperature.csv"} <= {p.name for p in report.iterdir()}
    assert "72.3 (0.44)" in (report / "ablation_prior.md").read_text()
