"""Evaluation: scores of models on test sets, comparison of two systems, and plots of attention and training curves.

Models or text files go in; scores with their signatures, and plots, come out. May import training and what is below it.
"""
