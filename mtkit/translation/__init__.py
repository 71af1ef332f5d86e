"""Translation: the translator, decoding, streams of lines, canaries, and BLEU and other scores.

A bundle and lines of text go in; translations, their log-probabilities and scores come out. May import bundle, search,
models and what is below them.
"""
