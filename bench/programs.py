"""Functions of tensors that are one program each on CUDA, compiled when they are first called, and plain on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, TypeVar, cast

from torch import Tensor

from bench.graphs import compiled

F = TypeVar("F", bound=Callable[..., Any])
plain = False


def fused(function: F) -> F:
    """Compiled where its first argument is a CUDA tensor; one program per combination of shapes, dtypes and options."""

    @wraps(function)
    def run(x: Tensor, *rest: Any) -> Any:
        return (program(function) if fast(x) else function)(x, *rest)

    return cast(F, run)


def fast(x: Tensor) -> bool:
    """Whether x lies where compiled programs pay."""
    return x.is_cuda and not plain


@contextmanager
def plainly() -> Iterator[None]:
    """Nothing is compiled inside: what compiled programs are held against."""
    global plain
    plain = True
    try:
        yield
    finally:
        plain = False


@cache
def program(function: F) -> F:
    """The compiled function, made once."""
    return cast(F, compiled(function))
