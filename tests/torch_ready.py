"""torch, ready to be forked: one thread, and what it imports at the first optimizer and checkpoint loaded."""

from __future__ import annotations

import torch
import torch.utils.checkpoint

torch.set_num_threads(1)
_p = torch.zeros(1, requires_grad=True)
_p.sum().backward()
torch.optim.SGD([_p], lr=0.1).step()
