"""Every setting: its name, type, default, limits and meaning in one line.

Defaults, a YAML file and key=value arguments go in; frozen settings, messages, commented YAML and a JSON schema come
out. Imports no other room, and never torch.
"""
