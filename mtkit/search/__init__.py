"""Searches for translations: greedy search, sampling, beam search and mask-predict, with constraints and penalties.

A search returns hypotheses with scores. It calls a step function, which maps the last token of each hypothesis to the
log-probabilities of the next token. Of the other packages of mtkit, only `models` may be imported here, for the
protocol of decoding states.
"""
