"""Sounding scenes: procedural videos whose sound is caused by what is seen."""
