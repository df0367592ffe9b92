"""Finished runs put to use on new images."""
