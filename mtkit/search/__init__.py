"""Searches over any model: greedy, sampling, beam; constraints and penalties.

A search calls a step function, tokens to log-probabilities, and returns hypotheses with scores. May import models.
"""
