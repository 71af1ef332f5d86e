"""The commands, a module for each group of them, and the options that they share.

A command checks its arguments, imports the function that does the work, calls it, and prints the result. Only this room
and cli import typer; they may import every other room.
"""
