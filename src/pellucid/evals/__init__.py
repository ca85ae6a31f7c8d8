"""Evaluations: what a network, a layer or a representation is judged with."""
