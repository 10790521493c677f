"""Less memory: what a block computes inside is computed once more for the gradients, not kept."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """A block's output; a training step keeps only its input. The same numbers, slower."""
    # Once more in the backward pass, and then not counted in BN's statistics again.
    contexts = (nullcontext(), _statistics_kept(block))
    output: Tensor = checkpoint(
        block,
        x,
        use_reentrant=False,
        context_fn=lambda: contexts,
        preserve_rng_state=False,  # the nets draw nothing, and a capture could not save the state
    )
    return output


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, kept in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = kept
