"""Crops become weights: the engine, its events and its run folders."""
