"""Weights as integers: grids, corrections, error-compensating rounding, mixed widths."""
