"""CUDA graphs: a phase is captured once per configuration and replayed; on a CPU it simply runs."""

from collections.abc import Callable

import torch

Phase = Callable[[], None]


def capture(phases: list[Phase], device: torch.device, warmups: int = 3) -> list[Phase]:
    """One replayable program per phase, sharing one memory pool.

    The phases are compiled (forward passes bring their own kernels and are left alone) and run `warmups` times, in
    order, so that nothing is compiled later; whatever state they change is the caller's to reset.
    """
    if device.type != "cuda":
        return phases
    phases = [compiled(phase) for phase in phases]
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


def compiled(phase: Phase) -> Phase:
    """Small operations become few kernels. Every configuration is a program of its own, so the limit is lifted."""
    if phase is nothing:
        return phase
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
    return torch.compile(phase, dynamic=False)


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
