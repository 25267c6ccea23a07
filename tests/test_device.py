import numpy as np
import pytest
import torch

from jobs.config import Execution
from jobs.device import device_of, forget_peak_memory, peak_memory_bytes


def test_a_cpu_is_used_where_it_is_asked_for_or_there_is_no_gpu() -> None:
    assert device_of(Execution(device="cpu")) == torch.device("cpu")
    if not torch.cuda.is_available():
        assert device_of(Execution()) == torch.device("cpu")
        with pytest.raises(ValueError, match="torch sees no GPU here; use 'auto' or 'cpu'"):
            device_of(Execution(device="cuda"))


def test_a_peak_is_remembered_until_it_is_forgotten() -> None:
    """Mutant check: a peak that is never forgotten fails where the kernel lets a process forget it."""
    cpu = torch.device("cpu")
    forget_peak_memory(cpu)
    before = peak_memory_bytes(cpu)
    block = np.ones(2**26, np.uint8)  # 64 MiB, above what an allocator keeps
    del block
    assert peak_memory_bytes(cpu) > before + 2**25
    forget_peak_memory(cpu)
    assert peak_memory_bytes(cpu) < before + 2**25
