import "gptoss-onnx/worker";
