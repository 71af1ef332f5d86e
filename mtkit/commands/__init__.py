"""What is typed: one module for each group of commands, and the options that they share.

A command checks its arguments, imports the one function that does the work, calls it, and prints what comes back. With
cli, this is the only home of typer; it may import everything below.
"""
