"""What may be wrong with a data set: duplicates, labels, outliers, classes; found in the features of a cache."""
