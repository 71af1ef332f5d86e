"""From lines of text to translations: translator, decoding, streams of lines, canaries, and the scores of translations.

A bundle and lines go in; translations, probabilities and scores come out. May import the bundle, searches and models.
"""
