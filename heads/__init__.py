"""Cached features in, scored classifier heads out: selection, metrics and runs. Imports neither torch nor scikit-learn."""
