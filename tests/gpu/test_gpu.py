"""On a GPU: staging by several ranks that share one, and NCCL through CuPy."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu.conftest import Run

SHARED = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}


@pytest.mark.parametrize("program", ["torch_streams", "torch_dtypes"])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_tensors_over_the_engine(gpus: int, processes: Run, program: str, transport: str) -> None:
    processes(2, program, transport)


def test_cupy_arrays_over_the_engine(cupy: Any, processes: Run) -> None:
    processes(3, "cupy_streams", "auto")


def test_nccl_through_cupy_by_one_rank(cupy: Any, processes: Run) -> None:
    processes(1, "cupy_to_itself", "cupy")


def test_nccl_through_cupy_on_several_gpus(cupy: Any, gpus: int, processes: Run) -> None:
    if gpus < 2:
        pytest.skip("one GPU only")
    processes(gpus, "cupy_streams", "cupy")


def test_nccl_through_cupy_by_ranks_that_share_a_gpu(cupy: Any, processes: Run) -> None:
    version = cupy.cuda.nccl.get_version()
    if version < 23000:
        pytest.skip(f"NCCL {version // 10000}.{version // 100 % 100} lets no two ranks share a GPU: 2.30 is the first")
    processes(2, "cupy_streams", "cupy", CUDA_VISIBLE_DEVICES="0", **SHARED)
