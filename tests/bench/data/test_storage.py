import errno
import json
import re
import shutil
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from typer.testing import CliRunner

from bench import cli
from bench.data.check import check_datasets
from bench.data.dataset import find_datasets, load_dataset
from bench.data.storage import _belongs, is_url, local_folders, mirror
from bench.errors import UserError


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty before and after."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def remote(toy, memory) -> str:
    """The toy data set at memory://bucket/toy, with things beside it that are none of ours."""
    upload(toy, memory, "/bucket/toy")
    memory.pipe({"/bucket/toy/raw/scan.nii.gz": b"0" * 1000, "/bucket/toy/README.md": b"# toy", "/bucket/a.bin": b"0"})
    return "memory://bucket/toy"


def upload(folder: Path, memory, root: str) -> None:
    memory.pipe({f"{root}/{name}": content for name, content in tree(folder).items()})


def tree(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def count_reads(memory, monkeypatch) -> list[str]:
    read, names = memory.cat_file, []
    monkeypatch.setattr(type(memory), "cat_file", lambda self, path, **more: names.append(path) or read(path, **more))
    return names


def test_the_mirror_is_the_data_set_and_nothing_else(toy, remote, tmp_path):
    folder = mirror(remote, tmp_path / "cache")
    assert folder == tmp_path / "cache" / "memory" / "bucket" / "toy"
    assert tree(folder) == tree(toy)
    assert check_datasets([folder]) == []
    assert [s.image_id for s in load_dataset(folder).train] == [s.image_id for s in load_dataset(toy).train]


def test_a_folder_of_data_sets_is_mirrored_with_their_names(toy, remote, memory, tmp_path):
    upload(toy, memory, "/bucket/second")
    folder = mirror("memory://bucket", tmp_path)
    assert [path.name for path in find_datasets([folder])] == ["second", "toy"]
    assert not (folder / "a.bin").exists()


def test_the_second_time_nothing_is_read(remote, memory, tmp_path, monkeypatch):
    mirror(remote, tmp_path)
    reads = count_reads(memory, monkeypatch)
    mirror(remote, tmp_path)
    assert reads == []


def test_only_what_changed_is_read_and_what_is_gone_is_removed(toy, remote, memory, tmp_path, monkeypatch):
    folder = mirror(remote, tmp_path)
    images = sorted(path.name for path in (toy / "train").iterdir())
    changed = (toy / "train" / images[0]).read_bytes()[::-1]  # of the same size: told by the version
    memory.pipe(f"/bucket/toy/train/{images[0]}", changed)
    memory.rm(f"/bucket/toy/train/{images[1]}")
    (folder / "train" / images[2]).write_bytes(b"cut short")
    (folder / "train" / images[3]).unlink()
    reads = count_reads(memory, monkeypatch)
    mirror(remote, tmp_path)
    assert sorted(reads) == [f"/bucket/toy/train/{images[i]}" for i in (0, 2, 3)]
    assert (folder / "train" / images[0]).read_bytes() == changed
    assert not (folder / "train" / images[1]).exists()
    for name in images[2:]:
        assert (folder / "train" / name).read_bytes() == (toy / "train" / name).read_bytes()


def test_an_interrupted_copy_goes_on_where_it_stopped(toy, remote, memory, tmp_path, monkeypatch):
    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mirror(remote, tmp_path, stop)
    folder = tmp_path / "memory" / "bucket" / "toy"
    log = folder / ".mirror.jsonl"
    known = [json.loads(line)[0] for line in log.read_text().splitlines() if line]
    assert 0 < len(known) < len(tree(toy))
    log.write_text(log.read_text().rstrip()[:-5])  # as a crash in the middle of a line leaves it
    reads = count_reads(memory, monkeypatch)
    mirror(remote, tmp_path)
    assert {f"/bucket/toy/{name}" for name in known[:-1]}.isdisjoint(reads)
    assert tree(folder) == tree(toy)
    reads.clear()
    mirror(remote, tmp_path)
    assert reads == []


def test_progress_counts_every_byte(toy, remote, tmp_path):
    seen = []
    mirror(remote, tmp_path, lambda done, total: seen.append((done, total)))
    size = sum(map(len, tree(toy).values()))
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_an_incomplete_file_is_told_and_not_kept(remote, memory, tmp_path, monkeypatch):
    read = memory.cat_file
    monkeypatch.setattr(
        type(memory), "cat_file", lambda self, path: read(path)[:-1] if path.endswith("test.json") else read(path)
    )
    with pytest.raises(UserError, match=r"test\.json came with \d+ of \d+ bytes; run the same command again"):
        mirror(remote, tmp_path)
    assert not (tmp_path / "memory/bucket/toy/test.json").exists()


def test_keys_that_leave_the_folder_are_not_written(remote, memory, tmp_path):
    memory.store["/bucket/toy/train/../../../outside.png"] = memory.store["/bucket/toy/train.json"]
    mirror(remote, tmp_path / "cache")
    assert list(tmp_path.rglob("outside*")) == []


@pytest.mark.parametrize(
    "name", ["/train/x.png", "/set/train/x.png", "./train/x.png", "train//x.png", "../train/x.png"]
)
def test_a_name_that_leaves_the_folder_is_of_no_data_set(name):
    """By whoever wrote the log of what was copied, which says what is to be removed."""
    assert _belongs(["train", "x.png"]) and not _belongs(name.split("/"))


def test_what_cannot_be_read_is_one_line_with_the_fix(remote, memory, tmp_path, monkeypatch):
    class NoCredentialsError(Exception):
        pass

    def fails(error):
        def find(self, *args, **kwargs):
            raise error

        return find

    cases = {
        PermissionError(errno.EACCES, "Access Denied"): "access denied .* see fsspec on memory://",
        NoCredentialsError("Unable to locate\ncredentials"): "Unable to locate credentials.*; see fsspec on",
        FileNotFoundError("The specified bucket does not exist"): "nothing is there .* check the address",
        TimeoutError("no answer"): "TimeoutError: no answer.*check the address and the connection",
    }
    for error, message in cases.items():
        with monkeypatch.context() as patch:
            patch.setattr(type(memory), "find", fails(error))
            with pytest.raises(UserError, match=message) as told:
                mirror(remote, tmp_path)
        assert str(told.value).startswith(remote)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/empty", "no train.json here or one level below"),
        ("ftq://bucket/toy", r"unknown protocol ftq://; give a folder or a URL such as s3://bucket/set"),
        ("memory://", "name the folder of a data set"),
        ("memory://bucket/../toy", "name the folder of a data set"),
    ],
)
def test_unusable_urls_are_told(url, message, memory, tmp_path):
    with pytest.raises(UserError, match=message):
        mirror(url, tmp_path)


def test_a_password_is_refused_before_anything_is_read(bench, tmp_path):
    with pytest.raises(UserError, match=r"^the URL ftp://\*\*\*@host/set holds a password: .*FSSPEC_FTP_PASSWORD"):
        local_folders(["ftp://me:s3cret@host/set"], tmp_path)
    words = ("run", "--suite", "smoke", "--data", "ftp://me:s3cret@127.0.0.1:9/set", "--runs-dir", tmp_path)
    done = bench(*words)
    assert done.returncode == 2 and "holds a password" in done.stderr
    assert "s3cret" not in done.stderr + done.stdout and not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")])
def test_a_missing_package_is_named(protocol, package, told_without):
    told = told_without(package, "bench.data.storage", f"mirror('{protocol}://bucket/set', None)")
    assert re.fullmatch(rf"{protocol}://bucket/set: .* is missing: pip install {package}", told)


def test_folders_and_file_urls_are_read_where_they_are(toy, tmp_path):
    assert local_folders([toy, str(toy), f"file://{toy}"], tmp_path / "cache") == [toy] * 3
    assert not (tmp_path / "cache").exists()
    assert not is_url(toy)


def test_bench_run_reads_a_remote_data_set(toy, remote, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there
    words = ["run", "--suite", "smoke", "--methods", "location_prior", "--executor", "local"]
    places = {"here": str(toy), "there": remote}
    for name, place in places.items():
        runs = ["--data", place, "--name", name, "--runs-dir", str(tmp_path / "runs")]
        done = CliRunner().invoke(cli.app, [*words, *runs])
        assert done.exit_code == 0, done.output
    shutil.rmtree(toy)
    suites = {name: json.loads((tmp_path / "runs" / name / "suite.json").read_text()) for name in places}
    assert suites["there"]["split_hash"] == suites["here"]["split_hash"]
    assert f"--data {remote}" in suites["there"]["command"]
    records = [next((tmp_path / "runs" / name).glob("*/records.parquet")) for name in places]
    here, there = (pd.read_parquet(file).drop(columns=["seconds"]) for file in records)
    pd.testing.assert_frame_equal(here, there)


def test_the_commands_of_bench_data_take_urls(toy, remote, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mirrored = tmp_path / "runs" / "data" / "memory" / "bucket" / "toy"
    for words, text in (
        (["check"], "no problems in 1 data set: toy"),
        (["stats"], "object sizes"),
        (["preview"], "toy-preview.png"),
        (["split"], "bench run --splits splits.json"),
    ):
        done = CliRunner().invoke(cli.app, ["data", *words, remote])
        assert done.exit_code == 0 and text in done.output, done.output
    assert tree(mirrored) == tree(toy)
    assert json.loads(Path("splits.json").read_text())["datasets"]["toy"]["root"] == str(mirrored)
