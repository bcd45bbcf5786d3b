"""`bench verify` as a user meets it: what is equal, what is told, what cannot be verified."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from bench.records import decode_mask, encode_mask


@pytest.fixture
def suite(toy_runs, tmp_path):
    """A copy of the smoke suite's runs on the toy data."""
    return shutil.copytree(toy_runs / "runs" / "toy", tmp_path / "runs" / "toy")


def run_of(suite, method):
    return next(suite.glob(f"{method}-*"))


def state_of(folder):
    return {file.relative_to(folder): (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.rglob("*.*")}


def test_an_untouched_suite_is_equal_and_stays_as_it_is(bench, suite):
    before = state_of(suite)
    done = bench("verify", suite)
    assert done.returncode == 0, done.stdout + done.stderr
    for method in ("boltzformer", "seem", "sam", "location_prior"):
        assert f"equal        {run_of(suite, method).name}: 8 records and masks, bit for bit" in done.stdout
    assert "different" not in done.stdout and "warning" not in done.stdout
    assert state_of(suite) == before


def flip(file, name, place, bit):
    """Turns one bit of one weight over and saves the file as torch does."""
    state = torch.load(file, weights_only=True)
    state[name] = state[name].contiguous()
    state[name].view(torch.int32).view(-1)[place] ^= 1 << bit
    torch.save(state, file)


def test_one_bit_of_one_weight_is_told(bench, suite):
    run = run_of(suite, "sam")
    flip(run / "model.pt", next(iter(torch.load(run / "model.pt", weights_only=True))), 0, bit=0)
    done = bench("verify", run)
    assert done.returncode == 1 and f"different    {run.name}" in done.stdout
    assert f"{run / 'model.pt'} has other bytes than when the run ended" in done.stdout


def test_a_weight_that_matters_shows_in_the_masks_of_an_older_run_too(bench, suite, tmp_path):
    """Runs that ended before there were hashes in status.json are compared by what they predict."""
    run = run_of(suite, "sam")
    status = json.loads((run / "status.json").read_text())
    del status["files"]
    (run / "status.json").write_text(json.dumps(status))
    assert bench("verify", run).returncode == 0
    weights = torch.load(run / "model.pt", weights_only=True)
    for name, value in weights.items():
        if "mlps" in name:  # they make the mask of the text
            value *= -4
    torch.save(weights, run / "model.pt")
    done = bench("verify", run, "--json", tmp_path / "told.json")
    assert done.returncode == 1 and "of 8 masks differ" in done.stdout and "confidence" in done.stdout
    told = json.loads((tmp_path / "told.json").read_text())["runs"][0]
    assert (
        not told["equal"]
        and told["changed"] == []
        and told["unequal"] == len({(d["image_id"], d["object"]) for d in told["differences"]})
    )


@pytest.mark.parametrize("column", ["tp", "confidence", "prompt", "hd95", "spec_hash"])
def test_an_altered_record_is_told_with_its_row(bench, suite, column):
    run = run_of(suite, "boltzformer")
    records = pd.read_parquet(run / "records.parquet")
    row = records.index[3]
    was = records.loc[row, column]
    now = {"tp": 7, "hd95": 7.0, "confidence": np.nextafter(was, 9) if column == "confidence" else None}
    records.loc[row, column] = now.get(column, "another")
    records.to_parquet(run / "records.parquet", index=False)
    done = bench("verify", run)
    assert done.returncode == 1 and "1 of 8 masks differ" in done.stdout
    line = next(line for line in done.stdout.splitlines() if f" {column} " in line)
    assert records.loc[row, "image_id"] in line and records.loc[row, "object"] in line
    if column == "tp":
        counts = {name: records.loc[row, name] for name in ("fp", "fn")}
        dices = [200 * tp / (2 * tp + sum(counts.values())) for tp in (int(was), 7)]
        assert f"by up to {abs(dices[0] - dices[1]):.2f} points" in done.stdout


def test_a_record_that_stands_twice_is_told(bench, suite):
    run = run_of(suite, "location_prior")
    records = pd.read_parquet(run / "records.parquet")
    pd.concat([records, records.iloc[[2]]]).to_parquet(run / "records.parquet", index=False)
    done = bench("verify", run)
    assert done.returncode == 1 and "twice" in done.stdout


def test_a_run_of_an_earlier_version_is_compared_by_what_it_has(bench, suite):
    run = run_of(suite, "location_prior")
    records = pd.read_parquet(run / "records.parquet").drop(columns=["hits", "nsd_1"]).assign(schema_version=1)
    records.to_parquet(run / "records.parquet", index=False)
    done = bench("verify", run)
    assert done.returncode == 0 and "no column nsd_1; no column hits; schema_version 1, now 2" in done.stdout


def test_the_seconds_are_not_compared(bench, suite):
    run = run_of(suite, "location_prior")
    records = pd.read_parquet(run / "records.parquet").assign(seconds=99.0)
    records.to_parquet(run / "records.parquet", index=False)
    assert bench("verify", run).returncode == 0


def test_an_altered_mask_and_rows_that_come_or_go_are_told(bench, suite):
    run = run_of(suite, "location_prior")
    masks = pd.read_parquet(run / "predictions.parquet")
    mask = decode_mask(masks.loc[0, "runs"], masks.loc[0, "height"], masks.loc[0, "width"])
    mask[0, 0] ^= True
    masks.at[0, "runs"] = encode_mask(mask)
    masks.to_parquet(run / "predictions.parquet", index=False)
    done = bench("verify", run)
    assert done.returncode == 1 and "1 of 8 masks differ, by up to 0.00 points" in done.stdout
    records = pd.read_parquet(run / "records.parquet")
    records.iloc[1:].to_parquet(run / "records.parquet", index=False)
    done = bench("verify", run)
    assert done.returncode == 1 and any("none" in line and "there" in line for line in done.stdout.splitlines())


def test_other_packages_are_a_warning(bench, suite):
    run = run_of(suite, "location_prior")
    env = json.loads((run / "env.json").read_text())
    env["versions"]["torch"] = "2.6.0"
    (run / "env.json").write_text(json.dumps(env))
    done = bench("verify", run)
    assert done.returncode == 0 and "warning" in done.stdout and "torch 2.6.0, now" in done.stdout


def lose_weights(suite, run):
    (run / "model.pt").unlink()
    return "has no model.pt"


def cut_weights(suite, run):
    content = (run / "model.pt").read_bytes()
    (run / "model.pt").write_bytes(content[: len(content) // 2])
    return "does not fit the model of its spec.json, or is broken"


def fail(suite, run):
    (run / "status.json").write_text(json.dumps({"state": "failed", "error": "no luck"}))
    return "is failed"


def lose_data(suite, run):
    splits = json.loads((suite / "splits.json").read_text())
    for entry in splits["datasets"].values():
        entry["root"] = "/nowhere/toy"
    (suite / "splits.json").write_text(json.dumps(splits))
    return "/nowhere/toy"


def change_split(suite, run):
    splits = json.loads((suite / "splits.json").read_text())
    for entry in splits["datasets"].values():
        entry["test"].pop()
    (suite / "splits.json").write_text(json.dumps(splits))
    return "the data have changed since these splits were made"


def lose_masks(suite, run):
    (run / "predictions.parquet").unlink()
    return "has no predicted masks, as in an archive: verify the suite that it was made from"


def lose_records(suite, run):
    (run / "records.parquet").write_bytes(b"")
    return "records.parquet cannot be read"


def spoil_records(suite, run):
    records = pd.read_parquet(run / "records.parquet").astype({"tp": object})
    records["tp"] = "many"
    records.to_parquet(run / "records.parquet", index=False)
    return "records.parquet has other values than records have"


SPOILED = [lose_weights, cut_weights, fail, lose_data, change_split, lose_masks, lose_records, spoil_records]


@pytest.mark.parametrize("spoil", SPOILED)
def test_what_cannot_be_verified_is_one_line(bench, suite, spoil):
    run = run_of(suite, "sam")
    reason = spoil(suite, run)
    done = bench("verify", run)
    assert done.returncode == 2 and done.stdout.strip() == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and reason in done.stderr


def test_a_suite_names_what_it_could_not_verify_and_goes_on(bench, suite):
    (run_of(suite, "sam") / "model.pt").unlink()
    (run_of(suite, "location_prior") / "location_prior.npz").unlink()
    done = bench("verify", suite)
    assert done.returncode == 2 and done.stdout.count("not verified") == 2 and done.stdout.count("equal  ") == 2


def test_a_name_that_means_no_run(bench, suite):
    done = bench("verify", "toy/bolzformer", "--runs-dir", suite.parent)
    assert done.returncode == 2 and "boltzformer" in done.stderr


@pytest.mark.slow  # nnU-Net trains in processes of its own
def test_nnunet_is_verified_from_weights_alone(bench, toy, tmp_path):
    words = ["--suite", "smoke", "--data", toy, "--methods", "nnunet", "--executor", "local"]
    made = bench("run", *words, "--runs-dir", tmp_path, "--name", "n", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert made.returncode == 0, made.stderr
    before = state_of(tmp_path / "n")
    done = bench("verify", "n", "--runs-dir", tmp_path)
    assert done.returncode == 0 and "8 records and masks, bit for bit" in done.stdout, done.stdout + done.stderr
    assert state_of(tmp_path / "n") == before
    for weights in (tmp_path / "n").rglob("weights.pt"):
        state = torch.load(weights, weights_only=True)
        for value in state.values():
            value.neg_()
        torch.save(state, weights)
    done = bench("verify", "n", "--runs-dir", tmp_path)
    assert done.returncode == 1 and "weights.pt has other bytes" in done.stdout
    assert "8 of 8 masks differ" in done.stdout
    weights.write_bytes(b"PK")
    done = bench("verify", "n", "--runs-dir", tmp_path)
    assert done.returncode == 2 and "cannot predict" in done.stdout and "Traceback" not in done.stderr
