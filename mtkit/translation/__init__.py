"""Translation: the translator, decoding, streams of lines, canaries, and BLEU and other scores.

Input: a bundle and lines of text. Output: translations, their log-probabilities and scores. Of the other packages of
mtkit, only `bundle`, `models`, `data`, `text` and `config` may be imported here.
"""
