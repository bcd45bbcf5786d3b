"""`bench run --backbone-weights` before and after training, as a user meets it."""

import http.server
import io
import json
import threading
import time

import pytest
import torch
from rich.console import Console

from bench import run as driver
from bench import tracking
from bench.errors import UserError
from bench.plan import Request
from models.backbones import build_backbone


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
