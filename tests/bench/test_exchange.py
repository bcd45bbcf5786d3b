"""Files of a folder and a URL brought together, on several file systems; what is compared with is the folder itself."""

import os
import re
from pathlib import Path

import fsspec
import fsspec.config
import pytest
from fsspec.config import set_conf_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import exchange as exchange_module
from bench.errors import UserError
from bench.exchange import LARGE, Exchange, check_url
from bench.sharing import bring, exchange_of, trial_folder


@pytest.fixture(scope="module", params=["file", "memory", "ftp", "s3"])
def place(request, storage):
    """A URL under which things can be written."""
    with pytest.MonkeyPatch.context() as patch:
        url, environment = storage(request.param)
        if environment:
            read = {}
            set_conf_env(read, environment)
            patch.setitem(fsspec.config.conf, request.param, read[request.param])
        yield url


def contents(folder):
    """name -> bytes of what is to travel."""
    files = [file for file in Path(folder).rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


names = st.sampled_from(
    ["suite.json", "a/status.json", "a/model.pt", "a/nnunet/x y.bin", "b/status.json", "b/resume.pt"]
)
steps = st.lists(st.tuples(names, st.none() | st.binary(max_size=30)), max_size=6)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(steps, min_size=1, max_size=4))
def test_what_one_side_writes_and_removes_the_other_has(place, tmp_path_factory, rounds):
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    url = f"{place}/{one.name}"
    for round in rounds:
        for run in "ab":  # a run's status is there as long as the run
            (one / run).mkdir(exist_ok=True)
            (one / run / "status.json").write_text("{}")
        for name, content in round:
            (one / name).parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                (one / name).write_bytes(content)
            elif name.count("/") and not name.endswith("status.json"):
                (one / name).unlink(missing_ok=True)
        Exchange(url, one).push(prune=True)  # anew each time: what is known stands in a file
        Exchange(url, other).pull()
        assert contents(other) == contents(one)
        fresh = tmp_path_factory.mktemp("fresh")
        Exchange(url, fresh).pull()
        assert contents(fresh) == contents(one)


def test_what_is_the_same_does_not_travel_again(place, tmp_path, monkeypatch):
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "a").mkdir(parents=True)
    (one / "a/model.pt").write_bytes(os.urandom(LARGE + 1))
    (one / "a/status.json").write_text("{}")
    Exchange(f"{place}/same", one).push()
    Exchange(f"{place}/same", other).pull()
    assert contents(other) == contents(one)
    sent, fetched = [], []
    monkeypatch.setattr(Exchange, "_send", lambda self, name, stamp: bool(sent.append(name)))
    monkeypatch.setattr(Exchange, "_fetch", lambda self, name, version: fetched.append(name))
    Exchange(f"{place}/same", one).push()
    Exchange(f"{place}/same", one).pull()
    Exchange(f"{place}/same", other).push()
    Exchange(f"{place}/same", other).pull()
    assert sent == fetched == []
    (one / "a/model.pt").touch()
    Exchange(f"{place}/same", one).push()
    assert sent == ["a/model.pt"]


def test_folders_that_another_machine_has_made_in_the_meantime(place, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name / "a").mkdir(parents=True)
        (tmp_path / name / "a/model.pt").write_text(name)
    Exchange(f"{place}/before", tmp_path / "one").push()
    one, other = (Exchange(f"{place}/meantime/{name}", tmp_path / name) for name in ("one", "other"))
    assert not one.has("stop")  # what it has listed is out of date from now on
    other.push()
    one.push()
    Exchange(f"{place}/meantime", tmp_path / "both").pull()
    assert contents(tmp_path / "both") == {"one/a/model.pt": b"one", "other/a/model.pt": b"other"}


def test_a_file_that_lies_at_the_url_alone(place, tmp_path):
    url = f"{place}/alone"
    exchange = Exchange(url, tmp_path / "one")
    assert exchange.get(".sign") is None
    for content in (b"first", b"second"):
        exchange.put(".sign", content)
        assert Exchange(url, tmp_path / "other").get(".sign") == content
    assert not exchange.names_there()
    exchange.remove(".sign")
    assert exchange.get(".sign") is None


def test_a_status_is_never_there_before_its_files(tmp_path, monkeypatch):
    (tmp_path / "one/a").mkdir(parents=True)
    for name in ("status.json", "records.parquet", "zoo"):
        (tmp_path / "one/a" / name).write_text("new")
    exchange = Exchange(f"file://{tmp_path}/there", tmp_path / "one")
    order, send = [], exchange._send
    monkeypatch.setattr(exchange, "_send", lambda name, stamp: (order.append(name), send(name, stamp))[1])
    exchange.push()
    assert order[-1] == "a/status.json" and len(order) == 3

    # it changes after it was looked at: it waits, for the files that it now speaks of may not have been looked at
    (tmp_path / "one/a/status.json").write_text("looked at")
    stamps = exchange._stamps(lambda name: True)
    (tmp_path / "one/a/status.json").write_text("finished, with more files")
    monkeypatch.setattr(exchange, "_stamps", lambda wanted: stamps)
    exchange.push()
    assert (tmp_path / "there/a/status.json").read_text() == "new"


def test_what_storage_has_lost_is_sent_again_and_stays_here(tmp_path):
    one, there = tmp_path / "one", tmp_path / "there"
    (one / "a").mkdir(parents=True)
    (one / "a/status.json").write_text("{}")
    (one / "a/records.parquet").write_text("records")
    Exchange(f"file://{there}", one).push()
    before = contents(one)
    for file in there.rglob("*.*"):
        file.unlink()
    Exchange(f"file://{there}", one).pull()
    assert contents(one) == before and contents(there) == {}
    Exchange(f"file://{there}", one).push()
    assert contents(there) == before


def test_two_suites_of_one_name_are_not_mixed(tmp_path):
    for folder in ("there/main", "here/main"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "suite.json").write_text("{}")
    with pytest.raises(UserError, match=r"here/main and file://.*/there/main both hold a suite.*--name"):
        exchange_of(f"file://{tmp_path}/there", tmp_path / "here/main")


@pytest.mark.parametrize("way", ["push", "pull"])
def test_killed_while_they_meet_for_the_first_time_it_goes_on(way, tmp_path, monkeypatch):
    """Both have suite.json, and nothing here says that it is the same; another suite is none the less refused."""
    url, here = f"file://{tmp_path}/there", tmp_path / "here/main"
    from_side = here if way == "push" else tmp_path / "there/main"
    from_side.mkdir(parents=True)
    (from_side / "suite.json").write_text('{"id": "a1"}')
    with monkeypatch.context() as patch:
        for note in ("_note", "_write_record"):
            patch.setattr(Exchange, note, lambda *args: 1 / 0)
        with pytest.raises(UserError, match="division by zero"):
            getattr(exchange_of(url, here), way)()
    assert (here / "suite.json").exists() and (tmp_path / "there/main/suite.json").exists()
    bring(url, here, lambda: None)
    assert contents(here) == contents(tmp_path / "there/main")
    (tmp_path / "there/main/suite.json").write_text('{"id": "b2"}')
    with pytest.raises(UserError, match="both hold a suite"):
        bring(url, here, lambda: None)


def test_a_checkpoint_is_never_there_before_its_curve(tmp_path, monkeypatch):
    """The curve grows while it is read."""
    run = tmp_path / "here/a"
    run.mkdir(parents=True)
    (run / "history.jsonl").write_text("1\n")
    (run / "resume-00000002-0123456789abcdef.pt").write_bytes(b"")
    exchange, read = Exchange(f"file://{tmp_path}/there", tmp_path / "here"), exchange_module._content
    order = []

    def grows(file):
        if file.name == "history.jsonl":
            with file.open("a") as curve:
                curve.write("2\n")
        order.append(file.name)
        return read(file)

    monkeypatch.setattr(exchange_module, "_content", grows)
    exchange.push()
    assert order == ["history.jsonl", "resume-00000002-0123456789abcdef.pt"]
    assert (tmp_path / "there/a/history.jsonl").read_text() == "1\n2\n"
    exchange.push()
    assert (tmp_path / "there/a/history.jsonl").read_text() == "1\n2\n2\n", "it is not known to be the same"


def test_a_suite_that_is_refused_brings_no_runs(tmp_path):
    (tmp_path / "there/main/a").mkdir(parents=True)
    (tmp_path / "there/main/suite.json").write_text("{}")
    (tmp_path / "there/main/a/status.json").write_text("{}")

    def refuse():
        assert (tmp_path / "here/main/suite.json").exists()
        raise UserError("another split")

    with pytest.raises(UserError, match="another split"):
        bring(f"file://{tmp_path}/there", tmp_path / "here/main", refuse)
    assert set(contents(tmp_path / "here")) == {"main/suite.json"}


def test_a_storage_out_of_reach_for_a_while_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.sharing.PAUSE", 0.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "there/main").mkdir(parents=True)
    (tmp_path / "there/main/suite.json").write_text('{"data": {}}')
    with trial_folder(f"file://{tmp_path}/there", tmp_path / "driver/main", "a") as folder:
        assert folder != tmp_path / "driver/main" and (folder / "suite.json").exists()
        (folder / "a").mkdir()
        (folder / "a/records.parquet").write_text("records")
        push, left = Exchange.push, [2]

        def fails_twice(self, *args, **kwargs):
            left[0] -= 1
            if left[0] >= 0:
                raise UserError("no answer")
            push(self, *args, **kwargs)

        monkeypatch.setattr(Exchange, "push", fails_twice)
    assert (tmp_path / "there/main/a/records.parquet").read_text() == "records"
    assert not folder.exists() and not (tmp_path / "driver").exists()


def test_a_configuration_of_a_search_has_the_curves_of_the_others_when_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "there/main/b").mkdir(parents=True)
    for name, content in {"suite.json": '{"data": {}}', "search-sam.json": "{}", "b/history.jsonl": "{}"}.items():
        (tmp_path / "there/main" / name).write_text(content)
    (tmp_path / "there/main/b/model.pt").write_text("not needed")
    with trial_folder(f"file://{tmp_path}/there", tmp_path / "driver/main", "a") as folder:
        assert [file.name for file in (folder / "b").iterdir()] == ["history.jsonl"]


@pytest.mark.parametrize("name", ["../outside", "a/../../outside"])
def test_a_key_that_leads_out_is_passed_over(name, tmp_path):
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pipe_file("/bucket/main/a/status.json", b"{}")
    system.store[f"/bucket/main/{name}"] = system.store["/bucket/main/a/status.json"]
    Exchange("memory://bucket/main", tmp_path / "here").pull()
    assert set(contents(tmp_path)) == {"here/a/status.json"}
    system.store.clear()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://me:secret@host/runs", r"^--storage ftp://\*\*\*@host/runs holds a password: .*environment"),
        ("/shared/runs", r"is no URL: write s3://bucket/runs.*or use --runs-dir"),
        ("ftq://bucket/runs", r"unknown protocol ftq://.*such as s3://bucket/runs"),
        ("memory://", r"name the folder of the runs, such as memory://bucket/runs"),
    ],
)
def test_unusable_urls_are_told(url, message):
    with pytest.raises(UserError, match=message) as told:
        check_url(url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")])
def test_a_missing_package_is_named(protocol, package, told_without):
    told = told_without(package, "bench.exchange", f"check_url('{protocol}://bucket/runs')")
    assert re.search(rf"is missing: pip install {package}$", told)


def test_the_command_line_tells_a_mistake_in_one_line(bench, tmp_path):
    done = bench("run", "--suite", "smoke", "--storage", "ftp://me:secret@host/runs", "--runs-dir", tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: --storage ftp://***@host/runs holds a password")
    assert done.stderr.count("\n") == 1 and "secret" not in done.stdout
