"""The other campaigns of a torture run."""


def run(*a): ...
