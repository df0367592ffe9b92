"""Cached heads and fine-tuning side by side on the same rows: what each is worth, and at what cost."""
