"""The cache on disk: its commit log, snapshots, reading and verification."""
