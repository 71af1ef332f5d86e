"""Searches for translations: greedy search, sampling and beam search, with constraints and penalties.

A search calls a step function, which maps the last token of each hypothesis to the log-probabilities of the next, and
returns hypotheses with scores. May import models, for the protocol of their states.
"""
