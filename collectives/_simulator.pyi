import numpy as np
import numpy.typing as npt

class Simulator:
    def __init__(
        self,
        size: int,
        offsets: npt.NDArray[np.int64],
        kind: npt.NDArray[np.uint8],
        lane: npt.NDArray[np.uint8],
        other: npt.NDArray[np.int32],
        chunk: npt.NDArray[np.int32],
        count: npt.NDArray[np.int32],
    ) -> None: ...
    @property
    def sources(self) -> npt.NDArray[np.int64]: ...
    @property
    def targets(self) -> npt.NDArray[np.int64]: ...
    @property
    def transfers(self) -> int: ...
    def run(
        self,
        route_offsets: npt.NDArray[np.int64],
        route_links: npt.NDArray[np.int32],
        latency_s: npt.NDArray[np.float64],
        seconds_per_byte: npt.NDArray[np.float64],
        combine_seconds_per_byte: float,
        overhead_s: npt.NDArray[np.float64],
        chunk_bytes: float,
        segment_bytes: float,
        one_port: bool,
        trace: bool,
    ) -> float: ...
    @property
    def link_bytes(self) -> npt.NDArray[np.float64]: ...
    @property
    def trace_steps(self) -> npt.NDArray[np.int64]: ...
    @property
    def trace_times(self) -> npt.NDArray[np.float64]: ...
