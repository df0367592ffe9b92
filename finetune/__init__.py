"""Floor 3: end-to-end training of the same backbone on the same rows as the heads: plans, and the one loop."""
