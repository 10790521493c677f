"""The errors of a net in evaluation mode."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resrepro.data.batches import Batches


def arithmetic(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Autocast for bfloat16; the other precisions are settings of the process."""
    if precision == "bfloat16":  # a cache of cast weights would outlive a captured graph
        return lambda: torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return nullcontext


@torch.no_grad()
def errors(network: nn.Module, batches: Batches, split: str, precision: str) -> tuple[float, float]:
    """Mean loss and error (percent) on the unaugmented images of a split.

    An answer that is not finite is wrong, and makes the loss nan or inf: after few iterations a
    deep plain net's running BN statistics lag so far behind its weights that this happens. The
    net is left in training mode.
    """
    network.eval()
    autocast = arithmetic(precision, batches.device)
    loss = torch.zeros((), dtype=torch.float64, device=batches.device)
    wrong = torch.zeros((), dtype=torch.int64, device=batches.device)
    count = 0
    for x, labels in batches.unaugmented(split):
        with autocast():
            logits: Tensor = network(x)
        loss += F.cross_entropy(logits.float(), labels, reduction="sum")
        is_right = (logits.argmax(1) == labels) & logits.isfinite().all(1)
        wrong += (~is_right).sum()
        count += len(labels)
    network.train()
    return loss.item() / count, 100 * wrong.item() / count
