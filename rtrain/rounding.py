"""Whole numbers that are rounded up."""


def ceil_div(count: int, by: int) -> int:
    """`count / by`, rounded up."""
    return -(-count // by)


def round_up(count: int, multiple: int) -> int:
    """The next multiple, or `count` itself where it is one."""
    return ceil_div(count, multiple) * multiple
