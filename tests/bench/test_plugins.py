"""Methods of other packages: found by their entry points, and one line where one is not as it should be."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENTRY = "from bench.interface import MethodEntry\nENTRY = MethodEntry('Mine', lambda spec: None, 'here')\n"


@pytest.fixture
def package(tmp_path):
    """Writes an installed package into a folder of packages: package(name, {method: value}, {module: text})."""

    def write(name: str, methods: dict[str, str], modules: dict[str, str]) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{method} = {value}" for method, value in methods.items()]
        (info / "entry_points.txt").write_text("\n".join(["[boltzbench.methods]", *lines]) + "\n")
        for module, text in modules.items():
            (tmp_path / f"{module}.py").write_text(text)

    return write


def listing(bench, tmp_path):
    return bench("list", "methods", PYTHONPATH=f"{tmp_path}:{ROOT}")


def test_a_method_of_a_package_is_one_of_METHODS(bench, package, tmp_path):
    package("mine", {"my_method": "mine:ENTRY"}, {"mine": ENTRY})
    words = listing(bench, tmp_path).stdout.split()
    start = words.index("my_method")
    assert words[start : start + 6] == ["my_method", "Mine", "yes", "here", "mine", "1.0"]
    code = "from bench.methods import METHODS; print(type(METHODS).__name__, list(METHODS)[-1])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, capture_output=True, text=True
    )
    assert done.stdout == "dict my_method\n"


def test_the_package_may_be_imported_first(package, tmp_path):
    package("mine", {"my_method": "mine:ENTRY"}, {"mine": ENTRY})
    code = "import mine; from bench.methods import METHODS; assert METHODS['my_method'].label == mine.ENTRY.label"
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize(
    ("methods", "module", "message"),
    [
        ({"sam": "mine:ENTRY"}, ENTRY, "'sam' (mine:ENTRY), a name that boltzbench has given already"),
        ({"my-method": "mine:ENTRY"}, ENTRY, "a name that has more than a-z, 0-9 and _"),
        ({"m": "mine:ENTRY"}, "import nowhere_at_all", "cannot be imported (ModuleNotFoundError: No module named"),
        ({"m": "mine:OTHER"}, ENTRY, "cannot be imported (AttributeError: module 'mine' has no attribute 'OTHER')"),
        ({"m": "mine:ENTRY"}, "ENTRY = print", "which is a builtin_function_or_method, not a bench.interface"),
        ({"m": "mine:ENTRY"}, "import sys\nENTRY = 1/0", "cannot be imported (ZeroDivisionError: division by zero)"),
    ],
)
def test_an_entry_that_is_not_as_it_should_be_is_one_line_naming_the_package(
    bench, package, tmp_path, methods, module, message
):
    package("mine", methods, {"mine": module})
    done = listing(bench, tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: the package mine offers the method ") and message in done.stderr
    assert "pip uninstall mine" in done.stderr


def test_two_packages_with_one_name(bench, package, tmp_path):
    package("mine", {"my_method": "mine:ENTRY"}, {"mine": ENTRY})
    package("yours", {"my_method": "mine:ENTRY"}, {})
    error = listing(bench, tmp_path).stderr
    assert "a name that mine 1.0 has given already" in error or "a name that yours 1.0 has given already" in error
