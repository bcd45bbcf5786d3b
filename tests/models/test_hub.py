"""Names of published weights: a path as it is, the hub by repository, everything else told."""

import re

import pytest

from models.checkpoints import CheckpointError
from models.hub import HUB_FILES, locate


def test_hub_files_are_those_that_meta_names():
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    ours = {name: file for name, file in HUB_FILES.items() if name.startswith("facebook/sam2")}
    assert ours == {name: HF_MODEL_ID_TO_FILENAMES[name][1] for name in ours} and len(ours) == 6


def test_a_path_is_taken_as_it_is_and_a_wrong_one_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").write_bytes(b"x")
    assert locate("w.pt") == tmp_path / "w.pt"
    hints = {"v.pt": "give a path", str(tmp_path): "give a path", "facebook/sam2-hiera-smal": "did you mean facebook/"}
    for wrong, hint in hints.items():
        with pytest.raises(
            CheckpointError, match=rf"^{re.escape(wrong)} is neither a file nor known on the hub: {hint}"
        ):
            locate(wrong)
    with pytest.raises(CheckpointError, match=r"^hf://a/b names no file"):
        locate("hf://a/b")
