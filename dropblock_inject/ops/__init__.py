"""The operator and the layer: gamma, the parameters of a mask, three backends that draw it, autograd.

May import: errors.
"""
