"""Calls that run what a file says, or unpack what it holds, stand nowhere in this program."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bench", "models", "baselines", "experiments", "reports")

# modules whose loaders execute what they read, or write where an archive says
MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "tarfile"}
HARMLESS = {("pickle", "UnpicklingError")}  # which others raise
BY_NAME = {("torch", "load"), ("os", "system"), ("os", "popen")}  # would hide a call from the rules below
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
METHODS = {"extract", "extractall", "unpack_archive", "read_pickle"}  # whatever they are called on


def name_of(node: ast.expr) -> str:
    """`torch.load` of the call torch.load(...); "" for what has no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{name_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def faults_of_call(call: ast.Call) -> list[str]:
    name = name_of(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    rules = {
        name: name in CALLS or ("." in name and name.split(".")[-1] in METHODS),
        "torch.load without weights_only=True": name == "torch.load" and given.get("weights_only") != "True",
        "shell": given.get("shell", "False") != "False",
        "allow_pickle": given.get("allow_pickle", "False") != "False",
    }
    return [what for what, broken in rules.items() if broken]


def faults(source: str) -> list[str]:
    """Every forbidden call or import of a source text: its line and what it is."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            what = [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            pairs = {(node.module.split(".")[0], alias.name) for alias in node.names}
            what = [name for module, name in pairs - HARMLESS if module in MODULES or (module, name) in BY_NAME]
        else:
            what = faults_of_call(node) if isinstance(node, ast.Call) else []
        found += [f"line {node.lineno}: {name}" for name in what]
    return found


def test_nothing_forbidden():
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    found = {str(file.relative_to(ROOT)): faults(file.read_text()) for file in files}
    assert {file: what for file, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=trusted)",
        "from torch import load",
        "import pickle",
        "from pickle import loads",
        "import yaml",
        "from joblib import load",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=trusted)",
        "pd.read_pickle(file)",
        "archive.extractall(folder)",
        "shutil.unpack_archive(file)",
        "subprocess.run(command, shell=True)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
    ],
)
def test_it_would_be_seen(line):
    assert len(faults(line)) == 1


@pytest.mark.parametrize(
    "line", ["torch.load(file, weights_only=True)", "np.load(file)", "model.eval()", "re.compile(a)"]
)
def test_what_is_allowed(line):
    assert faults(line) == []
