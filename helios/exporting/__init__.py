"""Trained networks for other programs: their weights, ``torch.export`` programs, and ONNX."""

from helios.exporting.graph import export_onnx as export_onnx
from helios.exporting.graph import export_program as export_program
from helios.exporting.weights import network_weights as network_weights
from helios.exporting.weights import write_weights as write_weights
