"""Scores and pictures: test sets translated and scored, two systems compared, training curves and attention drawn.

Models or files of lines go in; scores with their signatures, and figures, come out. May import training and what is
below it.
"""
