"""Evaluation: scores of models on test sets, comparison of two systems, and plots of attention and training curves.

Input: models or text files. Output: scores with their signatures, and plots. Every module of mtkit may be imported here
except `cli`, `pipeline` and those in `commands`.
"""
