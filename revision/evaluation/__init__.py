"""Scores of trained models on benchmark pictures, with intervals, and the tables of sweeps."""
