"""Model directories and ONNX files with random weights, made from configs."""
