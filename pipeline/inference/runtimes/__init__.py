"""Ways to run a module: eager, compiled, onnxruntime, OpenVINO, MNN; int8."""
