"""The command ``dropblock-inject``.

May import: everything else.
"""
