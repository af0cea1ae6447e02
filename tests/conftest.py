"""One thread per test process: the machine has two cores and pytest-xdist uses both."""

import torch

torch.set_num_threads(1)
