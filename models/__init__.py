"""BoltzFormer and its parts, one file per box of the paper's figures; pure torch."""
