"""Data sets in the layouts in which they are distributed, with their labels and splits."""
