"""Which rows: subsets and splits of a data set."""
