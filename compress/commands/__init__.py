"""The commands of `compresskit`, a file for each group; the only files that import all three packages."""

GROUPS = ("studies", "models", "finetuning", "targets", "lists", "schemas", "conformance")
"""Modules whose functions are commands, in the order in which help lists them."""
