"""Looking after a folder of caches: list, verify, compare, export and delete."""
