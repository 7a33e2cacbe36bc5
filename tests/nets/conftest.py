"""One thread: on a shared machine torch's waiting threads cost minutes."""

import torch

torch.set_num_threads(1)
