"""The phantom: CT-like and MR-like slices for the paper's seven data sets, objects sized as in Table 9.

sizes (area distributions) -> plan (what each slice shows) -> scene, shapes, chest, abdomen, lesions (drawing, at a
difficulty) -> render (one slice) -> write (folders in the BiomedParse layout). Numpy, SciPy and Pillow only.
"""

from bench.data.phantom.difficulty import PHANTOMS, Difficulty
from bench.data.phantom.plan import SlicePlan, plan_split
from bench.data.phantom.render import render_slice
from bench.data.phantom.write import VERSION, folder_name, generate, objects_by_dataset

__all__ = [
    "PHANTOMS",
    "VERSION",
    "Difficulty",
    "SlicePlan",
    "folder_name",
    "generate",
    "objects_by_dataset",
    "plan_split",
    "render_slice",
]
