"""Experiments: claims that are tested by training variants of a model and by checks without training.

A folder of experiment files and a budget of minutes go in; trained runs, measures, verdicts and a page come out.
May import all of mtkit except `cli` and `commands`.
"""
