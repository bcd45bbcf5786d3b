"""Table 1 of the paper, and with it Tables 2 and 9.

    bench run --suite main

The paper's numbers are in experiments/paper.py; runtimes and scores as measured stand in docs/results.md.
"""

from bench.spec import Suite

SUITE = Suite(
    name="main",
    title="Text-prompted decoders on identical splits",
    methods=(
        "location_prior",
        "nnunet",
        "biomedparse",
        "sam",
        "sam2",
        "seem",
        "mask2former",
        "sam3",
        "full_attention",
        "boltzformer",
    ),
    reference="boltzformer",
)
