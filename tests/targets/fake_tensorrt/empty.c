/* Libraries that do nothing: enough for NVIDIA's bindings to be imported and their names to be read. */
#define EMPTY(name) void *name(void) { return 0; }
EMPTY(createInferBuilder_INTERNAL)
EMPTY(createInferRefitter_INTERNAL)
EMPTY(createInferRuntime_INTERNAL)
EMPTY(createNvOnnxParser_INTERNAL)
EMPTY(createNvOnnxParserRefitter_INTERNAL)
EMPTY(getBuilderPluginRegistry)
EMPTY(getPluginRegistry)
EMPTY(getNvOnnxParserVersion)
EMPTY(initLibNvInferPlugins)
/* TensorRT 8 asks for four C++ functions of its old parsers by their mangled names. */
EMPTY(_ZN11nvuffparser15createUffParserEv)
EMPTY(_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi)
EMPTY(_ZN14nvcaffeparser117createCaffeParserEv)
EMPTY(_ZN14nvcaffeparser123shutdownProtobufLibraryEv)
