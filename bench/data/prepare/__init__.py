"""From the public data sets as downloaded to folders in the BiomedParse layout."""
