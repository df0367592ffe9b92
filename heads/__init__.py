"""Cached features in, scored classifier heads out: selection, metrics and runs. Imports no torch, no scikit-learn."""
