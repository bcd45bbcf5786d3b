"""Where published weights are: a file, or a name on the Hugging Face hub."""

from __future__ import annotations

import difflib
from pathlib import Path

from models.checkpoints import CheckpointError, first_line

# The file of a hub repository that is meant where only the repository is named.
HUB_FILES = {
    "facebook/sam2-hiera-tiny": "sam2_hiera_tiny.pt",
    "facebook/sam2-hiera-small": "sam2_hiera_small.pt",
    "facebook/sam2-hiera-base-plus": "sam2_hiera_base_plus.pt",
    "facebook/sam2.1-hiera-tiny": "sam2.1_hiera_tiny.pt",
    "facebook/sam2.1-hiera-small": "sam2.1_hiera_small.pt",
    "facebook/sam2.1-hiera-base-plus": "sam2.1_hiera_base_plus.pt",
    "facebook/sam3": "model.safetensors",
    "timm/sam2_hiera_tiny.fb_r896": "model.safetensors",
    "timm/sam2_hiera_small.fb_r896": "model.safetensors",
    "timm/sam2_hiera_base_plus.fb_r896": "model.safetensors",
    "timm/focalnet_large_fl4.ms_in22k": "model.safetensors",
    "xdecoder/X-Decoder": "xdecoder_focall_last.pt",
    "xdecoder/SEEM": "seem_focall_v1.pt",
    "microsoft/BiomedParse": "biomedparse_v1.pt",
}
HUB_TIMEOUT = 5.0  # seconds to wait for the hub's first answer


def locate(name: str) -> Path:
    """The file of published weights that `name` means: a path, a repository of HUB_FILES, or hf://OWNER/REPO/FILE.

    The latter two are fetched from the Hugging Face hub once. CheckpointError where there is no such file, or the hub
    cannot be reached: it names the file to fetch by hand.
    """
    if Path(name).exists() or not (name in HUB_FILES or name.startswith("hf://")):
        if not Path(name).is_file():
            near = difflib.get_close_matches(name, HUB_FILES, n=1, cutoff=0.8)
            hint = f"did you mean {near[0]}?" if near else "give a path, or hf://OWNER/REPO/FILE"
            raise CheckpointError(f"{name} is neither a file nor known on the hub: {hint}")
        return Path(name).absolute()
    words = name.removeprefix("hf://").split("/", 2)
    repository, file = "/".join(words[:2]), HUB_FILES.get(name) or "".join(words[2:])
    if not file:
        raise CheckpointError(f"{name} names no file: write hf://OWNER/REPO/FILE")
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    url = hf_hub_url(repository, file)
    try:
        get_hf_file_metadata(url, timeout=HUB_TIMEOUT)  # asks once; the download itself would ask for half a minute
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the library's errors and its transport's have no base in common
        raise CheckpointError(
            f"{name} cannot be fetched ({first_line(error)}): fetch {url} by hand and give the path of the file"
        ) from None
