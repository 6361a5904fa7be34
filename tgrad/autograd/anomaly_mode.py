"""Anomaly mode, where PyTorch has it."""

from tgrad.anomaly import detect_anomaly, set_detect_anomaly

__all__ = ["detect_anomaly", "set_detect_anomaly"]
