"""Stages 3 to 5 of 7: crops become tokens, features, logits. Pure tensor code."""
