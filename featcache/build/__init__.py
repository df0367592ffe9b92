"""Writing a cache file: planned, allocated, filled block by block, resumed and sealed."""
