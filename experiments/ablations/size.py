"""The image size, in shares of the profile's own; not in the paper, which uses 1024 px.

bench ablate size
"""

from bench.spec import Ablation

ABLATION = Ablation(
    name="size",
    title="Image size",
    field="recipe.image_size",
    values={"half": 0.5, "profile's": 1.0, "one and a half": 1.5},
    share=True,
)
