"""CUDA graphs: work is compiled and captured once, then replayed; on a CPU it simply runs."""

from collections.abc import Callable

import torch

Phase = Callable[[], None]


def prepared(phases: list[Phase], device: torch.device, warmups: int = 3) -> list[Phase]:
    """The phases compiled (forward passes bring their own kernels and are left alone), on a CPU as they are.

    They run `warmups` times, in order, so that nothing is compiled later; whatever state they change is the caller's
    to reset.
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
    torch.cuda.reset_peak_memory_stats(device)  # the compiler tried kernels out in a buffer as large as the L2 cache
    return phases


def compiled(phase: Phase) -> Phase:
    """Small operations become few kernels. Every configuration is a program of its own, so the limit is lifted."""
    if phase is nothing:
        return phase
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
    # by default, kernels that share no more than one number, as those of a single sequence do, are not joined
    return torch.compile(phase, dynamic=False, options={"aggressive_fusion": True, "score_fusion_memory_threshold": 0})


def nothing() -> None:
    """The phase of a method that has nothing to do there."""


def recorded(works: list[Phase], device: torch.device) -> list[Phase]:
    """Every work as one graph, on a CPU as it is. They share memory, so only one may run at a time.

    Each runs once before it is captured: an event, for one, must exist by then.
    """
    if device.type != "cuda":
        return works
    pool, replays = torch.cuda.graph_pool_handle(), []
    for work in works:
        work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            work()
        replays.append(graph.replay)
    return replays
