// ONNX Runtime's C API, from the framework on Apple's systems and from a folder elsewhere.
#if __has_include(<onnxruntime/onnxruntime_c_api.h>)
#include <onnxruntime/onnxruntime_c_api.h>
#else
#include "onnxruntime_c_api.h"
#endif
