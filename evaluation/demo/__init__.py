"""The main job, whole and small."""
