"""Writing ONNX: nodes, files, and what each target takes."""
