"""Translation: the translator, decoding, streams of lines, canaries, and BLEU and other scores.

Input: a bundle and lines of text. Output: translations, their log-probabilities and scores. May import bundle, search,
models and the packages that these may import.
"""
