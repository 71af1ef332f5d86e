"""Evaluation: scores of models on test sets, comparison of two systems, and plots of attention and training curves.

Input: models or text files. Output: scores with their signatures, and plots. May import training and the packages that
training may import.
"""
