"""How a trunk runs: engines, what they cost in fidelity, and which of them is worth its set-up."""
