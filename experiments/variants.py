"""SAM and SAM 2 as they may also be adapted to text: the pooled token instead of all, three masks instead of one.

bench run --suite variants
"""

from bench.spec import Suite

SUITE = Suite(
    name="variants",
    title="Variants of the text-prompted SAM and SAM 2",
    methods=("sam", "sam_pooled", "sam_multimask", "sam2", "sam2_pooled", "sam2_multimask"),
)
