"""What a file of somebody else may ask of this machine. More is an error, told before anything is decoded or unpacked.

Nothing here unpacks an archive onto the disk, and no reader of this program does.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MAX_PIXELS = 2**26  # of a picture, 8192 x 8192: Pillow warns from 1.3 times as many and stops at 2.7 times
MAX_VOXELS = 2**29  # of a volume, or of all frames of a DICOM file, 1024 x 1024 x 512: 4 GiB as float64
MAX_JSON_BYTES = 2**28  # some ten times BiomedParse's largest annotation file
MAX_ARRAY_BYTES = 2**28  # of all arrays of an .npz file, unpacked
MAX_ARRAYS = 10_000
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # may be half of a pair; such text cannot be written or printed
DEFLATE_RATIO = 1032  # deflate (gzip, ZIP) cannot pack tighter: a file that promises more is not whole


def load_json(path: Path) -> Any:
    """The JSON in `path`. Raises OSError, and ValueError for what is no JSON, too large, or nested too deeply."""
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise ValueError(f"{size:,} bytes, the limit is {MAX_JSON_BYTES:,}")
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a character, as \\ud800 is") from None
    return content


def check_pixels(width: int, height: int) -> None:
    """ValueError for a picture of more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} px, the limit is {MAX_PIXELS:,} in all")


def check_volume(shape: Sequence[int], value_bytes: int, file: Path) -> None:
    """ValueError for a volume without voxels, of more than MAX_VOXELS, or of more than `file` can hold at all."""
    voxels = math.prod(map(int, shape))
    size = " x ".join(map(str, shape))
    if any(side < 1 for side in shape) or voxels > MAX_VOXELS:
        raise ValueError(f"{size} voxels, from 1 to {MAX_VOXELS:,} in all can be read")
    if voxels * value_bytes > DEFLATE_RATIO * file.stat().st_size:
        raise ValueError(f"its header says {size} voxels, which a file of this size cannot hold")


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; no pickle in it is loaded.

    Raises ValueError for more than MAX_ARRAYS or MAX_ARRAY_BYTES, and OSError, ValueError, EOFError, KeyError,
    MemoryError or zipfile's and zlib's errors for a broken file.
    """
    import numpy as np

    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if len(members) > MAX_ARRAYS or sum(member.file_size for member in members) > MAX_ARRAY_BYTES:
        raise ValueError(f"more than {MAX_ARRAYS:,} arrays or {MAX_ARRAY_BYTES:,} bytes")
    with np.load(path, allow_pickle=False) as saved:
        return {name: saved[name] for name in saved.files}
