"""The commands of the command line, one module for each group, and the options that they share.

A command checks its arguments, imports the function that does the work, calls it, and prints the result. Only this
package and `mtkit.cli` may import typer. Both may import every other package of mtkit.
"""
