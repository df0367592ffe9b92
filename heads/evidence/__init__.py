"""Evidence from scores: metrics with intervals, comparisons of runs, calibration, confusions, learning curves."""
