"""Where images come from, how they are decoded and resized, and how they are read in batches."""
