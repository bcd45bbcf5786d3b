"""Table 7: the text-conditioned prior of the queries, Eq. 4.

    bench ablate prior

Paper, average Dice: unconditioned 72.3, text-conditioned 73.7.
"""

from bench.spec import Ablation

ABLATION = Ablation(
    name="prior",
    title="Query prior",
    field="model.text_prior",
    values={"unconditioned": False, "text-conditioned": True},
    table=7,
)
