"""What `bench tune` searches where no --space is given: the grid of the paper's appendix A.4."""

PAPER_GRID = {
    "learning_rate": (2e-5, 4e-5, 5e-5, 1e-4),
    "weight_decay": (1e-4, 1e-3, 1e-2),
}

# The paper's rates are for large pre-trained models and 9,000 steps: too low for 700 steps from random weights.
LAPTOP_GRID = {
    "learning_rate": (1e-4, 2e-4, 4e-4, 8e-4),
    "weight_decay": (1e-4, 1e-3, 1e-2),
}

GRIDS = {"smoke": LAPTOP_GRID, "laptop": LAPTOP_GRID, "gpu": PAPER_GRID, "paper": PAPER_GRID}
