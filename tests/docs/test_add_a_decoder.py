"""docs/add_a_decoder.md does what it says: its package is built, installed, listed, trained and in the report."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments.profiles import SMOKE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "add_a_decoder.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(\S+\.(?:py|toml))`\n\n```\w+\n(.*?)```$", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of packages with that of the page in it, put there by pip."""
    project, site = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        (project / name).write_text(text)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", site, project], check=True, capture_output=True)
    return site


def test_the_page_holds_a_short_decoder_and_a_package():
    assert set(FILES) == {"dot_product.py", "dot_product_method.py", "pyproject.toml"}
    assert len(FILES["dot_product.py"].splitlines()) <= 40


def test_it_is_listed_trained_and_in_the_report(site, bench, squares, tmp_path):
    path = f"{site}:{ROOT}"
    listed = bench("list", "methods", PYTHONPATH=path)
    assert re.search(r"dot_product +Dot product +yes +text embedding times S +dot-product 0\.1", listed.stdout)
    words = ("run", "--suite", "smoke", "--data", squares, "--methods", "dot_product,location_prior", "--name", "mine")
    environment = {"PYTHONPATH": path, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # nobody there
    done = bench(*words, "--executor", "local", "--runs-dir", tmp_path / "runs", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "runs" / "mine" / "report" / "main_table.csv").set_index("method")
    row = table.loc["Dot product+Hiera-XT"]
    assert float(row["average"]) >= 0 and row["budget"].startswith("20 steps x 4 images")
    env = next((tmp_path / "runs" / "mine").glob("dot_product-*/env.json"))
    assert json.loads(env.read_text())["method_package"] == "dot-product 0.1"
    again = bench("report", "mine", "--runs-dir", tmp_path / "runs")  # the package is not needed any more
    assert again.returncode == 0 and "Dot product+Hiera-XT" in again.stdout


def test_the_line_for_inside_is_an_entry_that_builds_it(tmp_path, monkeypatch):
    """The line as it stands on the page, with the file as a module of `baselines`."""
    import baselines
    from bench.interface import MethodEntry, build_in
    from bench.methods import make_spec
    from experiments import SUITES

    (tmp_path / "dot_product.py").write_text(FILES["dot_product.py"])
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    (line,) = re.findall(r'^    "dot_product": MethodEntry.*$', PAGE, re.MULTILINE)
    methods = eval(f"{{{line}}}", {"MethodEntry": MethodEntry, "build_in": build_in})
    spec = make_spec(SUITES["smoke"], SMOKE, "sam", "hiera_xt", 0, "0" * 12)
    model = methods["dot_product"].build(spec).build()
    assert type(model).__module__ == "baselines.dot_product"


def test_a_mask_does_not_depend_on_what_else_is_in_the_batch():
    module: dict = {}
    exec(compile(FILES["dot_product.py"], "dot_product.py", "exec"), module)
    torch.manual_seed(0)
    model = module["DotProduct"]("hiera_xt", SMOKE.model).eval()
    images = torch.rand(2, 3, 64, 64) * 255
    prompts = ["spleen", "right adrenal gland in abdominal CT", "spleen"]
    with torch.inference_mode():
        together = model(images, prompts, torch.tensor([0, 0, 1]))
        for row, image in enumerate((0, 0, 1)):
            alone = model(images[image : image + 1], prompts[row : row + 1], torch.tensor([0]))[0]
            assert torch.allclose(together[row], alone, atol=1e-4)
    assert together.shape == (3, 16, 16)
    assert not torch.allclose(together[0], together[1]) and not torch.allclose(together[0], together[2])
