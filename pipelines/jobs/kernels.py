"""How a worker computes: in so many threads, by the same kernels in every run."""

import torch

from datasets.decoding import single_threaded


def same_in_every_run(threads: int, *, tf32: bool = False) -> None:
    """Fix what the bits of a result could depend on beside its inputs, for this process.

    Args:
        threads: of PyTorch on the CPU; libraries that decode get one.
        tf32: whether products of matrices on NVIDIA GPUs are computed in TF32.
    """
    single_threaded()
    torch.set_num_threads(threads)
    # no trials of algorithms, whose winner differs from run to run
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
