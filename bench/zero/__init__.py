"""The ZeRO optimizer measured: steps beside DDP, ZeroRedundancyOptimizer, FSDP2 and DeepSpeed; memory estimated."""
