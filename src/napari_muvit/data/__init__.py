"""Stages 1 and 2 of 7: a store becomes nested crops. Only `dataset` needs torch."""
