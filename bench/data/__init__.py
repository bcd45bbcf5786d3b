"""Images, masks and prompts: the phantom, the reader of the BiomedParse layout, splits, batches, checks."""
