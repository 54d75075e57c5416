"""Shard formats: how tensors of clips are laid into immutable files."""
