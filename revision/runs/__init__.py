"""Runs on disk: their folders and finish marks, what an output depends on, provenance, child processes."""
