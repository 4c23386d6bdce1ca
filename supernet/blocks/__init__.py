"""Elastic blocks, one a file, each with the plain block it extracts to."""
