"""CUDA graphs: a phase is captured once per configuration and replayed; on a CPU it simply runs."""

from collections.abc import Callable

import torch

Phase = Callable[[], None]


def capture(phases: list[Phase], device: torch.device, warmups: int = 3) -> list[Phase]:
    """One replayable program per phase, sharing one memory pool.

    The phases are run `warmups` times first, in order, so that kernels are compiled and libraries have made their
    choices; whatever state they change is the caller's to reset.
    """
    if device.type != "cuda":
        return phases
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(warmups):
            for phase in phases:
                phase()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    pool = torch.cuda.graph_pool_handle()
    return [record(phase, pool) for phase in phases]


def nothing() -> None:
    """The phase of a method that has nothing to do there."""


def record(phase: Phase, pool) -> Phase:
    """Capture one phase."""
    if phase is nothing:
        return nothing
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        phase()
    return graph.replay
