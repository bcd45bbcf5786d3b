"""`bench run --backbone-weights` and `--weights` before and after a run, as a user meets them."""

import http.server
import io
import json
import re
import threading
import time

import pandas as pd
import pytest
import torch
from rich.console import Console

from baselines import biomedparse
from bench import run as driver
from bench import tracking
from bench.errors import UserError
from bench.execute import run_state
from bench.plan import Request
from bench.weights import own_weights_path
from bench.write_suite import earlier_specs
from models import backbones
from models.backbones import BACKBONES, build_backbone
from models.published_names import _as_convolution, _transposed


def sam2_file(path, backbone, **changes):
    """Weights of `backbone` as SAM 2's files name them."""
    state = {}
    for name, value in build_backbone(backbone).state_dict().items():
        theirs = name.replace("trunk.model.", "trunk.").replace("mlp.fc1", "mlp.layers.0").replace("fc2", "layers.1")
        for i in range(4):
            theirs = theirs.replace(f"neck.lateral.{i}", f"neck.convs.{3 - i}.conv")
        state[f"image_encoder.{theirs}"] = value
    torch.save({"model": state | changes}, path)
    return path


@pytest.fixture
def words(squares, tmp_path):
    """The command line of a tiny run on the squares, as Request's fields."""
    return {
        "suite": "smoke",
        "data": (squares,),
        "methods": ("sam",),
        "executor": "local",
        "runs_dir": tmp_path / "runs",
    }


def dry_run(**words):
    out = Console(file=io.StringIO(), width=200)
    code = driver.dry_run(Request(**words), out)
    return code, out.file.getvalue()


def test_a_run_from_published_weights_says_so_everywhere(bench, squares, tmp_path, words, monkeypatch):
    file = sam2_file(tmp_path / "sam2_xt.pt", "hiera_xt")
    options = ["--suite", "smoke", "--data", squares, "--methods", "sam,location_prior", "--executor", "local"]
    options += ["--runs-dir", tmp_path / "runs"]
    done = bench("run", *options, "--backbone-weights", file, MLFLOW_TRACKING_URI="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "weights  sam2_xt.pt (SAM 2): " in done.stdout
    (folder,) = (tmp_path / "runs").glob("smoke-squares-*")  # runs from other weights are another comparison
    suite = json.loads((folder / "suite.json").read_text())
    assert suite["backbone_weights"] == str(file) and f"--backbone-weights {file}" in suite["command"]
    prior, sam = (folder / run_id for run_id in suite["runs"])
    spec = json.loads((sam / "spec.json").read_text())
    digest = spec["weights"]["sha256"]
    assert spec["weights"] == {"file": "sam2_xt.pt", "sha256": digest, "parts": ["backbone"]}
    assert json.loads((prior / "spec.json").read_text())["weights"] is None
    said = {"backbone_weights": f"sam2_xt.pt sha256:{digest[:12]}", "text_weights": "random"}
    assert said.items() <= json.loads((sam / "env.json").read_text()).items()
    assert json.loads((sam / "status.json").read_text())["fit"]["notes"][0].startswith("sam2_xt.pt (SAM 2)")
    client = tracking.client(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    (tracked,) = client.search_runs([experiment], f"tags.bench_key LIKE '{sam.name[-10:]}%'")
    assert said.items() <= tracked.data.tags.items()

    # the same file again is the same run, other content another one, no weights a third
    def to_run(**changes):
        return dry_run(**(words | changes))[1].split("trials to run")[0].split()[-3:]

    assert to_run(backbone_weights=str(file)) == ["0", "of", "1"]
    (tmp_path / "elsewhere").mkdir()
    assert to_run(backbone_weights=str(file.rename(tmp_path / "elsewhere" / file.name))) == ["0", "of", "1"]
    other = sam2_file(tmp_path / "sam2_xt.pt", "hiera_xt")
    assert to_run(backbone_weights=str(other)) == ["1", "of", "1"]
    assert to_run() == ["1", "of", "1"]


def test_what_does_not_fit_is_told_before_anything_is_written(tmp_path, words):
    strange = sam2_file(tmp_path / "strange.pt", "hiera_xt", **{"image_encoder.trunk.extra": torch.zeros(1)})
    large = sam2_file(tmp_path / "small.pt", "hiera_s")
    (tmp_path / "text.pt").write_text("no checkpoint")
    cases = {
        str(tmp_path / "nowhere.pt"): "nowhere.pt is neither a file nor known on the hub: give a path",
        str(tmp_path / "text.pt"): "text.pt is damaged or no checkpoint",
        str(strange): "strange.pt (SAM 2) does not fit the model: 1 unexpected: image_encoder.trunk.extra",
        str(large): "small.pt (SAM 2) holds the backbone hiera_s, and the model has another: take a model with hiera_s",
    }
    for name, message in cases.items():
        for act in (driver.run, driver.dry_run):
            with pytest.raises(UserError) as caught:
                act(Request(**words, backbone_weights=name), Console(file=io.StringIO()))
            assert message in str(caught.value) and str(caught.value).startswith("--backbone-weights: ")
    assert not (tmp_path / "runs").exists()
    assert dry_run(**words | {"backbones": ("hiera_s",)}, backbone_weights=str(large))[0] == 0


def test_every_backbone_that_does_not_fit_is_named(tmp_path, words):
    file = sam2_file(tmp_path / "xt.pt", "hiera_xt")
    with pytest.raises(UserError, match=r"for hiera_t at profile smoke, .*; for hiera_s at profile smoke, "):
        dry_run(**words | {"backbones": ("hiera_t", "hiera_xt", "hiera_s")}, backbone_weights=str(file))


def test_weights_that_no_method_would_use_are_refused(tmp_path, words):
    file = sam2_file(tmp_path / "xt.pt", "hiera_xt")
    with pytest.raises(UserError, match="location_prior would not use it: leave it out"):
        dry_run(**words | {"methods": ("location_prior",)}, backbone_weights=str(file))


def test_problems_of_data_and_weights_are_told_at_once(squares, tmp_path, words):
    sorted((squares / "train").glob("*.png"))[0].unlink()
    code, shown = dry_run(**words, backbone_weights=str(tmp_path / "nowhere.pt"))
    assert code == 2
    assert "1 data problem" in shown
    assert "error: --backbone-weights: " in shown and "nowhere.pt is neither" in shown


def test_a_hub_that_cannot_be_reached_is_one_line_with_the_file_to_fetch(bench, squares, tmp_path):
    options = ["--suite", "smoke", "--data", squares, "--methods", "sam", "--runs-dir", tmp_path / "runs"]
    start = time.monotonic()
    done = bench(
        *("run", *options, "--dry-run", "--backbone-weights", "facebook/sam2-hiera-small"),
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path / "hub"),
    )
    assert time.monotonic() - start < 60  # imports and all; the hub's own client would go on asking
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: --backbone-weights: facebook/sam2-hiera-small cannot be fetched (")
    assert (
        "fetch http://127.0.0.1:9/facebook/sam2-hiera-small/resolve/main/sam2_hiera_small.pt by hand and give the path"
        in done.stderr
    )
    assert not (tmp_path / "runs").exists()


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its client asks for one file."""

    content = b""

    def do_HEAD(self):
        found = self.path == "/somebody/weights/resolve/main/xt.pt"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(self.content)) if found else "0")
        self.send_header("ETag", '"1234"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *args):
        pass


def test_a_file_of_the_hub_is_fetched_once(bench, squares, tmp_path):
    Hub.content = sam2_file(tmp_path / "xt.pt", "hiera_xt").read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ["--suite", "smoke", "--data", squares, "--methods", "sam", "--runs-dir", tmp_path / "runs"]
    options += ["--dry-run", "--backbone-weights", "hf://somebody/weights/xt.pt"]
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
    try:
        done = bench("run", *options, **environment)
        assert done.returncode == 0, done.stderr
        assert "weights  xt.pt (SAM 2): " in done.stdout
    finally:
        server.shutdown()
        server.server_close()
    assert bench("run", *options, **environment).returncode == 0


# ------------------------------------------------------------------ a method's own weights

NO_FILE = "no weights: give them with --weights biomedparse=FILE"


def biomedparse_file(path, shared, seed):
    """Random values by the names of the published file, as far as the small model has their places."""
    torch.manual_seed(seed)
    state = biomedparse.build_model().state_dict()
    theirs = {}
    for name in json.loads((shared / "reference" / "manifests" / "biomedparse_v1.json").read_text()):
        rule = next((rule for rule in biomedparse.WEIGHTS.rules if re.fullmatch(rule.theirs, name)), None)
        if rule is None:
            continue
        ours = (rule.ours,) if isinstance(rule.ours, str) else rule.ours
        places = [re.fullmatch(rule.theirs, name).expand(target) for target in ours]
        if set(places) <= set(state):
            value = torch.cat([state[place] for place in places]) if len(places) > 1 else state[places[0]]
            back = {_as_convolution: lambda tensor: tensor[..., 0, 0], _transposed: torch.t}
            theirs[name] = back.get(rule.change, lambda tensor: tensor)(value).clone()
    torch.save(theirs, path)
    return path


@pytest.fixture
def small_biomedparse(monkeypatch, shared):
    """BiomedParse at sizes for a test: small(path, seed) writes a file of it."""
    sizes = {"embed_dim": 8, "depths": (1, 1, 1, 1), "focal_levels": (2, 2, 2, 2), "layerscale_value": 1e-4}
    sizes |= {"use_overlap_down": True, "use_post_norm": True, "normalize_modulator": True}
    monkeypatch.setitem(BACKBONES, "focal_tiny", lambda: backbones._focal(**sizes))
    config = {"width": 32, "heads": 4, "feedforward": 32, "layers": 3, "queries": 4, "pixel_layers": 1}
    config |= {"text_width": 32, "text_layers": 1, "text_heads": 2}
    monkeypatch.setattr(biomedparse, "BACKBONE", "focal_tiny")
    monkeypatch.setattr(biomedparse, "CONFIG", biomedparse.CONFIG.model_copy(update=config))
    monkeypatch.setattr(biomedparse, "IMAGE_SIZE", 64)
    monkeypatch.setattr(tracking, "initialize_store", lambda uri, runs_dir: False)  # not what is tested here
    return lambda path, seed=0: biomedparse_file(path, shared, seed)


def run(**words):
    out = Console(file=io.StringIO(), width=200)
    code = driver.run(Request(**words), out)
    return code, out.file.getvalue()


def test_without_its_weights_a_row_stands_empty_with_the_reason(bench, squares, tmp_path):
    options = ["--suite", "smoke", "--data", squares, "--methods", "location_prior,biomedparse"]
    options += ["--executor", "local", "--runs-dir", tmp_path / "runs"]
    planned = bench("run", *options, "--dry-run")
    assert planned.returncode == 0 and NO_FILE in planned.stdout and "1 of 2 trials to run" in planned.stdout
    done = bench("run", *options, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0, done.stdout + done.stderr
    (suite,) = (tmp_path / "runs").glob("*/suite.json")
    run_id = json.loads(suite.read_text())["runs"][1]
    status = run_state(suite.parent / run_id)
    assert (status["state"], status["error"]) == ("left out", NO_FILE)
    assert f"not run  biomedparse: {NO_FILE}" in done.stdout.split("Dice by data set")[1]
    assert re.fullmatch(r"took     \d+ (s|min)", done.stdout.splitlines()[-1])
    report = suite.parent / "report"
    table = pd.read_csv(report / "main_table.csv", dtype=str, keep_default_na=False).set_index("method")
    row = table.loc["BiomedParse v1"].filter(regex="^(?!paper|data$)")  # "paper ...": what it published
    assert row["seeds"] == "0" and set(row.drop("seeds")) <= {"", "-"}
    assert f"BiomedParse v1, seed 0: {NO_FILE}" in (report / "index.html").read_text()
    again = bench("run", *options, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert again.returncode == 0 and "0 of 2 trials to run" in again.stdout


def test_a_suite_of_nothing_but_that_row_is_a_report_too(words, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "initialize_store", lambda uri, runs_dir: False)  # not what is tested here
    code, shown = run(**words | {"methods": ("biomedparse",)})
    assert code == 0 and NO_FILE in shown
    assert NO_FILE in next((tmp_path / "runs").glob("*/report/index.html")).read_text()


def test_with_its_weights_a_method_is_evaluated_and_nothing_trained(small_biomedparse, words, tmp_path):
    words = words | {"methods": ("location_prior", "biomedparse")}
    assert NO_FILE in run(**words)[1]
    file = small_biomedparse(tmp_path / "biomedparse_v1.pt")
    code, shown = run(**words, weights=(f"biomedparse={file}",))
    assert code == 0, shown
    assert "weights  of biomedparse: biomedparse_v1.pt (BiomedParse): " in shown
    assert "1 of 2 trials to run" in shown and "pre-trained, not trained here" in shown
    (folder,) = (tmp_path / "runs").glob("smoke-*")  # the same comparison: the other rows stay as they are
    suite = json.loads((folder / "suite.json").read_text())
    assert suite["own_weights"] == {"biomedparse": str(file)} and f"--weights biomedparse={file}" in suite["command"]
    run_dir = folder / suite["runs"][1]
    spec = json.loads((run_dir / "spec.json").read_text())
    assert spec["own_weights"]["file"] == file.name and spec["weights"] is None and spec["recipe"] is None
    fit = run_state(run_dir)["fit"]
    assert (fit["train_seconds"], fit["images_seen"], fit["budget"]) == (0, 0, "pre-trained, not trained here")
    assert fit["given"]["image_size"] == "64" and not (run_dir / "model.pt").exists()
    env = json.loads((run_dir / "env.json").read_text())
    assert env["own_weights"] == f"biomedparse_v1.pt sha256:{spec['own_weights']['sha256'][:12]}"
    assert len(pd.read_parquet(run_dir / "records.parquet")) == 4  # two test images of two objects

    # a command without the file keeps the row, other content is another run
    code, shown = run(**words)
    assert code == 0 and "0 of 2 trials to run" in shown and NO_FILE not in shown
    assert json.loads((folder / "suite.json").read_text())["runs"][1] == run_dir.name
    assert run(**words | {"methods": ("location_prior",)})[0] == 0
    assert json.loads((folder / "suite.json").read_text())["own_weights"] == {"biomedparse": str(file)}
    other = small_biomedparse(tmp_path / "other.pt", seed=1)
    assert "1 of 2 trials to run" in dry_run(**words, weights=(f"biomedparse={other}",))[1]


def test_a_file_that_has_changed_or_gone_since_the_plan_is_not_loaded(small_biomedparse, words, tmp_path):
    file = small_biomedparse(tmp_path / "w.pt")
    request = Request(**words | {"methods": ("biomedparse",), "weights": (f"biomedparse={file}",)})
    assert run(**vars(request))[0] == 0
    (folder,) = (tmp_path / "runs").glob("smoke-*")
    (spec,) = earlier_specs(folder)
    assert own_weights_path(spec, folder) == file
    small_biomedparse(file, seed=1)
    with pytest.raises(UserError, match=r"w\.pt has changed since this run was planned"):
        own_weights_path(spec, folder)
    file.unlink()
    with pytest.raises(UserError, match=r"w\.pt is gone: give the weights again with --weights biomedparse=FILE"):
        own_weights_path(spec, folder)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("biomedparse",), "--weights 'biomedparse': write METHOD=FILE"),
        (("=w.pt",), "--weights '=w.pt': write METHOD=FILE"),
        (("biomedparze=w.pt",), "unknown method 'biomedparze': did you mean 'biomedparse'?"),
        (("sam=w.pt",), "--weights sam=w.pt: sam has no published weights of its own (those that have: biomedparse"),
        (("biomedparse=a", "biomedparse=b"), "--weights biomedparse=a: biomedparse is given twice"),
        (("biomedparse=no.pt",), "--weights biomedparse: no.pt is neither a file nor known on the hub: give a path"),
        (("biomedparse=microsoft/Biomedparse",), "did you mean microsoft/BiomedParse?"),
    ],
)
def test_what_weights_cannot_be_is_one_line(words, tmp_path, asked, message):
    with pytest.raises(UserError) as caught:
        run(**words | {"methods": ("sam", "biomedparse")}, weights=asked)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_weights_of_a_method_that_is_not_run_are_refused(words):
    with pytest.raises(UserError, match="biomedparse is not run here: add it to --methods"):
        run(**words, weights=("biomedparse=w.pt",))


def test_weights_that_do_not_fit_are_refused_by_the_command_line(bench, squares, tmp_path):
    file = sam2_file(tmp_path / "sam2.pt", "hiera_xt")
    options = ["--suite", "smoke", "--data", squares, "--methods", "biomedparse", "--runs-dir", tmp_path / "runs"]
    done = bench("run", *options, "--weights", f"biomedparse={file}")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: --weights biomedparse: sam2.pt (BiomedParse) does not fit the model: 1008")
    assert not (tmp_path / "runs").exists()
