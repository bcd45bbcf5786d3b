"""The files of cluster/ are what the programs that read them take: by their own schemas, parsers and dry runs.

slurm.sh is run by test_slurm.py, the others were not run on a cluster here; kuberay.yaml has test_kuberay.py.
"""

import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from bench.tuning import SEEN_LATE, STOP_GRACE

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster"


def launched():
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(yaml.safe_load((FOLDER / "ray-cluster.yaml").read_text()))


def test_rays_launcher_takes_the_cluster():
    from ray.autoscaler._private.util import validate_config

    config = launched()
    validate_config(config)
    kinds = config["available_node_types"]
    gpus = kinds["gpus"]
    assert gpus["min_workers"] * gpus["resources"]["GPU"] == 32
    assert kinds[config["head_node_type"]]["resources"]["CPU"] == 0
    config["hed_node_type"] = "gpus"
    with pytest.raises(jsonschema.ValidationError, match="hed_node_type"):
        validate_config(config)


def test_bash_takes_the_slurm_script():
    script = FOLDER / "slurm.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    assert int(options["nodes"]) * int(options["gpus-per-task"]) == 32
    to, _, seconds = options["signal"].partition("@")
    assert to == "B:TERM", "the script, not the processes of srun, passes the signal on"
    assert int(seconds) > STOP_GRACE + SEEN_LATE


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing_in_the_slurm_script():
    done = subprocess.run(
        ["shellcheck", "--exclude=SC1091", FOLDER / "slurm.sh"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_commands_in_the_files_are_commands(bench):
    text = "".join(file.read_text() for file in sorted(FOLDER.iterdir()))
    options = {word for line in re.findall(r"bench run (.*)", text) for word in re.findall(r"--[\w-]+", line)}
    known = bench("run", "--help").stdout
    assert {"--address", "--runs-dir"} <= options and all(option in known for option in options)
