"""The chain as a file that runs without this package: TorchScript, ONNX, torch.export, TensorRT."""
