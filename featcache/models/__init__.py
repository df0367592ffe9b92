"""Backbones: their stages, their weights, and cutting them at a stage."""
