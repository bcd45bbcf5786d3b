"""Files are replaced whole or not at all."""

import json
import threading

import pytest

from bench.atomic import read_json, write_file, write_json, write_text
from bench.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    file = tmp_path / "value.json"
    write_json(file, {"a": 1})

    def half(handle):
        handle.write(b'{"a": ')
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_file(file, half)
    assert read_json(file, "-") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_readers_never_see_half_a_file(tmp_path):
    file = tmp_path / "value.json"
    write_json(file, [0] * 5000)
    stop = threading.Event()

    def rewrite():
        number = 0
        while not stop.is_set():
            number += 1
            write_json(file, [number] * 5000, durable=False)

    writers = [threading.Thread(target=rewrite) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(100):
            values = json.loads(file.read_text())
            assert len(values) == 5000 and len(set(values)) == 1
    finally:
        stop.set()
        for writer in writers:
            writer.join()


@pytest.mark.parametrize("content", [None, "{", '{"a": 1'])
def test_a_missing_or_torn_file_is_one_line_with_the_fix(tmp_path, content):
    file = tmp_path / "suite.json"
    if content is not None:
        write_text(file, content)
    with pytest.raises(UserError, match=r"suite\.json .*: run it again$") as caught:
        read_json(file, "run it again")
    assert "\n" not in str(caught.value)
