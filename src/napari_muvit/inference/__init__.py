"""Stages 6 and 7 of 7: weights and a pyramid become blended tiles and labels."""
