from bench.methods import make_spec
from bench.spec import RunSpec, Weights, sha256_of
from experiments import SUITES
from experiments.profiles import LAPTOP

PLAIN = {
    "suite": "main",
    "profile": "laptop",
    "method": "sam",
    "backbone": "hiera_s",
    "seed": 0,
    "split_hash": "0" * 12,
}


def test_a_run_without_weights_keeps_the_id_it_had_before_there_were_any():
    assert RunSpec(**PLAIN).run_id == "sam-hiera_s-seed0-cef0bd57b7"
    old = RunSpec(**PLAIN).model_dump(mode="json", exclude={"weights"})
    assert RunSpec.model_validate(old) == RunSpec(**PLAIN)


def test_a_trained_run_keeps_its_id_too():
    recipe = {"steps": 450, "batch_images": 16, "prompts_per_image": 2, "learning_rate": 1e-3, "validate_every": 90}
    recipe |= {"beta2": 0.999, "text_steps": 0}
    profile = LAPTOP.model_copy(update={"recipe": LAPTOP.recipe.model_copy(update=recipe)})
    spec = make_spec(SUITES["main"], profile, "sam", "hiera_xt", 0, "5eaf8bc100c7")
    assert spec.run_id == "sam-hiera_xt-seed0-e02bac0ebe"
    for changes in ({"recipe": {"gradient_checkpointing": True}}, {"model": {"compare_per_head": True}}):
        ((part, change),) = changes.items()
        other = spec.model_copy(update={part: getattr(spec, part).model_copy(update=change)})
        assert other.run_id != spec.run_id


def test_the_id_follows_the_content_of_the_weights(tmp_path):
    ids = {RunSpec(**PLAIN).run_id}
    for content in (b"one", b"two"):
        (tmp_path / "w.pt").write_bytes(content)
        weights = Weights(file="w.pt", sha256=sha256_of(tmp_path / "w.pt"), parts=("backbone",))
        ids.add(RunSpec(**PLAIN, weights=weights).run_id)
    assert len(ids) == 3
    # printf one | sha256sum
    (tmp_path / "w.pt").write_bytes(b"one")
    assert sha256_of(tmp_path / "w.pt") == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
