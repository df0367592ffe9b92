"""Embedding a data set: from images and a backbone to a sealed cache."""
