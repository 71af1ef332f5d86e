"""Evaluation: scores of models on test sets, comparison of systems, plots, and speed.

Input: models, settings or text files. Output: scores with their signatures, plots, and tables of speed. Every
module of mtkit may be imported here except `cli`, `pipeline` and those in `commands`, `experiment` and `report`.
"""
