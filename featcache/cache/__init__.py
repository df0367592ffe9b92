"""The cache file: its format, reading it, and its views for PyTorch and pandas."""
