"""A step that is done again and again: as it is, or captured as a CUDA graph."""

from collections.abc import Callable

import torch

from l4kernels.ops import dispatch

Step = Callable[[], None]
Capture = Callable[[Step], Step]
"""Does a step's work once, now, and returns what does it again. All that a step needs lies in
tensors that stay where they are."""


def as_it_is(step: Step) -> Step:
    """Without a graph: on a CPU."""
    step()
    return step


def cuda_graphs() -> Capture:
    """Captures whose memory for intermediate results is shared: one of them runs at a time.

    While a block sends ops elsewhere (`dispatch`), the step itself runs, and nothing is captured.
    """
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Step) -> Step:
        replay: Step | None = None

        def again() -> None:
            nonlocal replay
            if dispatch.open_blocks:
                step()
            elif replay is not None:
                replay()
            else:
                step()  # also sets up what a kernel needs once; capturing performs nothing
                graph = torch.cuda.CUDAGraph()
                # Other threads may go on using the GPU.
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    step()
                replay = graph.replay

        again()
        return again

    return capture
