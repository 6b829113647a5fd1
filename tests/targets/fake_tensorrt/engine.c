/* A stand-in for libnvinfer and libnvonnxparser behind NVIDIA's real Python bindings, for machines without either.
 *
 * No header of NVIDIA's is used. An object of the API is {vtable, implementation}; the bindings' inline methods
 * call the implementation through its own table, whose slots are facts about the ABI (slots.json, made into
 * slots.h). Each function here turns one such call into one question to Python (double.py), which keeps all state
 * and does the arithmetic with ONNX Runtime. A slot that nobody filled says its number and stops the process:
 * what the product calls must be written here, not guessed. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "slots.h"

typedef struct { int32_t n; SIZE d[8]; } Dims;
typedef struct { void **vtable; int64_t id; const char *kind; } Impl;
typedef struct { void **vtable; Impl *impl; } Object;

/* The question: what, of which object, a name, a number, some bytes, dimensions in and out, a text back. */
typedef struct {
    const char *what, *name, *text;
    int64_t id, number, other;
    const void *data;
    Dims dims;
} Question;
typedef int64_t (*Answerer)(Question *);
typedef int (*Capture)(void *stream, void (*work)(const void *), const void *with);

static Answerer answer;
static Capture capture;
static void *logger;

void fake_connect(Answerer answerer, Capture capturer) { answer = answerer, capture = capturer; }

static void unfilled(Impl *self, int slot) {
    fprintf(stderr, "the fake has no slot %d of %s\n", slot, self->kind ? self->kind : "an object");
    abort();
}
UNFILLED_FUNCTIONS

static void nothing(void *self) { (void)self; }
static void *object_table[] = {nothing, nothing};

static Object *object(void **table, int64_t id, const char *kind) {
    if (id < 0) return 0;
    Impl *impl = calloc(1, sizeof *impl);
    Object *made = calloc(1, sizeof *made);
    *impl = (Impl){table, id, kind};
    *made = (Object){object_table, impl};
    return made;
}
static int64_t ask(Impl *self, const char *what, const char *name, int64_t number) {
    Question question = {.what = what, .name = name, .number = number, .id = self ? self->id : 0};
    return answer(&question);
}
static Dims ask_dims(Impl *self, const char *what, const char *name, int64_t number, int64_t other) {
    Question question = {.what = what, .name = name, .number = number, .other = other, .id = self->id};
    answer(&question);
    return question.dims;
}
static const char *ask_text(Impl *self, const char *what, int64_t number) {
    Question question = {.what = what, .number = number, .id = self->id};
    answer(&question);
    return question.text;
}

/* What TensorRT writes goes to the logger that Python gave first, as in the real library. */
typedef void (*Log)(void *, int32_t, const char *);
void fake_log(int32_t severity, const char *text) {
    if (logger) ((Log)(*(void ***)logger)[LOG_SLOT])(logger, severity, text);
}

#define INT(name, what) static int32_t name(Impl *s) { return (int32_t)ask(s, what, 0, 0); }
#define SET(name, what) static void name(Impl *s, int32_t v) { ask(s, what, 0, v); }
#define MAKE(name, what, table, kind) \
    static Object *name(Impl *s) { return object(table, ask(s, what, 0, 0), kind); }
#define TABLE(name) static void *name[128];
TABLES

/* memory that Python owns */
static void *memory_data(Impl *s) { return (void *)ask(s, "memory_data", 0, 0); }
static size_t memory_size(Impl *s) { return (size_t)ask(s, "memory_size", 0, 0); }
static int32_t memory_type(Impl *s) { (void)s; return 2; /* INT8 */ }

/* builder */
INT(builder_dla_cores, "dla_cores")
static int32_t builder_dla_batch(Impl *s) { (void)s; return 4096; }
static bool yes(Impl *s) { (void)s; return true; }
MAKE(builder_config, "create_config", config_table, "VBuilderConfig")
MAKE(builder_profile, "create_profile", profile_table, "VOptimizationProfile")
static Object *builder_network(Impl *s, uint32_t flags) {
    return object(network_table, ask(s, "create_network", 0, flags), "VNetworkDefinition");
}
static Object *builder_build(Impl *s, Object *network, Object *config) {
    Question q = {.what = "build", .id = s->id, .number = network->impl->id, .other = config->impl->id};
    return object(memory_table, answer(&q), "VHostMemory");
}
static void *builder_logger(Impl *s) { (void)s; return logger; }

/* network, tensors, layers */
INT(network_inputs, "num_inputs")
INT(network_outputs, "num_outputs")
INT(network_layers, "num_layers")
static Object *network_input(Impl *s, int32_t i) { return object(tensor_table, ask(s, "input", 0, i), "VTensor"); }
static Object *network_output(Impl *s, int32_t i) { return object(tensor_table, ask(s, "output", 0, i), "VTensor"); }
static Object *network_layer(Impl *s, int32_t i) { return object(layer_table, ask(s, "layer", 0, i), "VLayer"); }
static const char *tensor_name(Impl *s) { return ask_text(s, "name", 0); }
static Dims tensor_dims(Impl *s) { return ask_dims(s, "dims", 0, 0, 0); }
INT(tensor_type, "type")
SET(tensor_set_type, "set_type")
static void tensor_set_formats(Impl *s, uint32_t formats) { ask(s, "set_formats", 0, formats); }
INT(layer_type, "type")

/* profile */
static bool profile_set(Impl *s, const char *name, int32_t which, PROFILE_DIMS dims) {
    Question q = {.what = "profile_set", .name = name, .number = which, .id = s->id, .dims = OF(dims)};
    return answer(&q);
}
static Dims profile_get(Impl *s, const char *name, int32_t which) { return ask_dims(s, "profile_get", name, which, 0); }

/* config */
SET(config_set_flag, "set_flag")
SET(config_clear_flag, "clear_flag")
static bool config_get_flag(Impl *s, int32_t flag) { return ask(s, "get_flag", 0, flag); }
static uint32_t config_flags(Impl *s) { return (uint32_t)ask(s, "flags", 0, 0); }
static void config_set_pool(Impl *s, int32_t pool, size_t size) {
    Question q = {.what = "set_pool", .number = pool, .other = (int64_t)size, .id = s->id};
    answer(&q);
}
static size_t config_get_pool(Impl *s, int32_t pool) { return (size_t)ask(s, "get_pool", 0, pool); }
static int32_t config_add_profile(Impl *s, Object *profile) {
    return (int32_t)ask(s, "add_profile", 0, profile->impl->id);
}
SET(config_set_verbosity, "set_verbosity")
INT(config_get_verbosity, "get_verbosity")
SET(config_set_device, "set_device")
INT(config_get_device, "get_device")
SET(config_set_core, "set_core")
INT(config_get_core, "get_core")
SET(config_set_capability, "set_capability")
static void config_set_calibrator(Impl *s, void *calibrator) { ask(s, "set_calibrator", 0, (int64_t)calibrator); }
/* Called by Python during a build: the calibrator's cache. */
const void *fake_calibration(void *calibrator, size_t *size) {
    return ((const void *(*)(void *, size_t *))(*(void ***)calibrator)[CALIBRATION_SLOT])(calibrator, size);
}
SET(config_set_level, "set_level")
SET(config_set_compatibility, "set_compatibility")
static bool config_on_dla(Impl *s, Object *layer) { return ask(s, "on_dla", 0, layer->impl->id); }
static Object *config_make_cache(Impl *s, const void *data, size_t size) {
    Question q = {.what = "make_cache", .data = data, .number = (int64_t)size, .id = s->id};
    return object(cache_table, answer(&q), "VTimingCache");
}
static bool config_set_cache(Impl *s, Object *cache, bool ignore) {
    Question q = {.what = "set_cache", .number = cache->impl->id, .other = ignore, .id = s->id};
    return answer(&q);
}
MAKE(config_get_cache, "get_cache", cache_table, "VTimingCache")
MAKE(cache_serialize, "serialize_cache", memory_table, "VHostMemory")

/* runtime, engine */
static Object *runtime_open(Impl *s, const void *data, size_t size) {
    Question q = {.what = "deserialize", .data = data, .number = (int64_t)size, .id = s->id};
    return object(engine_table, answer(&q), "VCudaEngine");
}
SET(runtime_set_core, "runtime_set_core")
INT(runtime_get_core, "runtime_get_core")
static void runtime_allow(Impl *s, bool allowed) { ask(s, "runtime_allow", 0, allowed); }
static bool runtime_allowed(Impl *s) { (void)s; return false; }
INT(engine_tensors, "num_tensors")
INT(engine_layers, "engine_layers")
INT(engine_profiles, "num_profiles")
static const char *engine_name(Impl *s, int32_t i) { return ask_text(s, "tensor_name", i); }
static Dims engine_shape(Impl *s, const char *name) { return ask_dims(s, "tensor_shape", name, 0, 0); }
static int32_t engine_dtype(Impl *s, const char *name) { return (int32_t)ask(s, "tensor_dtype", name, 0); }
static int32_t engine_mode(Impl *s, const char *name) { return (int32_t)ask(s, "tensor_mode", name, 0); }
static int32_t engine_location(Impl *s, const char *name) { (void)s, (void)name; return 0; }
static Dims engine_profile(Impl *s, const char *name, int32_t profile, int32_t which) {
    return ask_dims(s, "engine_profile", name, profile, which);
}
static int64_t engine_activations(Impl *s) { return ask(s, "activations", 0, 0); }
static int64_t engine_stat(Impl *s, int32_t stat) { return ask(s, "stat", 0, stat); }
static Object *engine_context(Impl *s, int32_t strategy) {
    return object(context_table, ask(s, "create_context", 0, strategy), "VExecutionContext");
}
MAKE(engine_inspector, "create_inspector", inspector_table, "VEngineInspector")
MAKE(engine_serialize, "serialize_engine", memory_table, "VHostMemory")
static const char *inspector_text(Impl *s, int32_t format) { return ask_text(s, "inspect", format); }
static bool inspector_context(Impl *s, void *context) { (void)s, (void)context; return true; }

/* context */
static bool context_set_shape(Impl *s, const char *name, const Dims *dims) {
    Question q = {.what = "set_shape", .name = name, .id = s->id, .dims = *dims};
    return answer(&q);
}
static Dims context_shape(Impl *s, const char *name) { return ask_dims(s, "context_shape", name, 0, 0); }
static bool context_address(Impl *s, const char *name, void *address) {
    return ask(s, "set_address", name, (int64_t)address);
}
static int32_t context_infer(Impl *s, int32_t room, const char **names) {
    Question q = {.what = "infer", .number = room, .id = s->id};
    int64_t missing = answer(&q);
    if (missing > 0 && names) names[0] = q.text;
    return (int32_t)missing;
}
static void context_work(const void *impl) { ask((Impl *)impl, "execute", 0, 0); }
static bool context_enqueue(Impl *s, void *stream) {
    if (!ask(s, "ready", 0, (int64_t)stream)) return false;
    if (capture && capture(stream, context_work, s)) return true;
    return ask(s, "execute", 0, 0);
}
static bool context_profile(Impl *s, int32_t index, void *stream) {
    (void)stream;
    return ask(s, "set_profile", 0, index);
}
static bool context_allocator(Impl *s, const char *name, void *allocator) {
    return ask(s, "set_allocator", name, (int64_t)allocator);
}
/* Called by Python for each output whose size depends on the data: its address, and then its shape. */
void *fake_reallocate(void *allocator, const char *name, void *memory, uint64_t size) {
    typedef void *(*Reallocate)(void *, const char *, void *, uint64_t, uint64_t);
    return ((Reallocate)(*(void ***)allocator)[REALLOCATE_SLOT])(allocator, name, memory, size, 256);
}
void fake_notify(void *allocator, const char *name, const Dims *dims) {
    ((void (*)(void *, const char *, const Dims *))(*(void ***)allocator)[SHAPE_SLOT])(allocator, name, dims);
}
INT(context_get_profile, "get_profile")
MAKE(context_engine, "engine_of", engine_table, "VCudaEngine")
static void context_profiler(Impl *s, void *profiler) { ask(s, "set_profiler", 0, (int64_t)profiler); }
static void *context_get_profiler(Impl *s) { return (void *)ask(s, "get_profiler", 0, 0); }
static void context_set_emits(Impl *s, bool on) { (void)s, (void)on; }
/* Called by Python for every layer of a run that is profiled. */
void fake_report(void *profiler, const char *layer, float ms) {
    ((void (*)(void *, const char *, float))(*(void ***)profiler)[REPORT_SLOT])(profiler, layer, ms);
}

/* parser: its table is the interface itself, without an implementation behind it */
typedef struct { void **vtable; int64_t id; const char *kind; int64_t code, node; char *text, *name, *op; } Error;
static bool parser_file(Impl *s, const char *path, int verbosity) {
    (void)verbosity;
    return ask(s, "parse", path, 0);
}
static bool parser_config(Impl *s, const void *config) { (void)s; return config != 0; }
static void parser_flag(Impl *s, int32_t flag) { ask(s, "parser_flag", 0, flag); }
INT(parser_errors, "num_errors")
static int32_t error_code(Error *e) { return (int32_t)e->code; }
static int32_t error_node(Error *e) { return (int32_t)e->node; }
static const char *error_desc(Error *e) { return e->text; }
static const char *error_name(Error *e) { return e->name; }
static const char *error_operator(Error *e) { return e->op; }
static Error *parser_error(Impl *s, int32_t index) {
    Question q = {.what = "error", .number = index, .id = s->id};
    int64_t code = answer(&q);
    Error *error = calloc(1, sizeof *error);
    char *text = strdup(q.text), *name = strchr(text, '\t'), *op = strchr(name + 1, '\t');
    *name++ = 0, *op++ = 0; /* words, name of the node and operator come as one text with tabs */
    *error = (Error){error_table, 0, "IParserError", code, q.other, text, name, op};
    return error;
}

static void fill_tables(void) {
    static bool done;
    if (done) return;
    done = true;
    FILL
}
static Object *start(void *given, const char *what, void **table, const char *kind, int32_t version) {
    fill_tables();
    if (!logger) logger = given;
    return object(table, ask(0, what, 0, version), kind);
}
void *createInferBuilder_INTERNAL(void *given, int32_t version) {
    return start(given, "create_builder", builder_table, "VBuilder", version);
}
void *createInferRuntime_INTERNAL(void *given, int32_t version) {
    return start(given, "create_runtime", runtime_table, "VRuntime", version);
}
void *createNvOnnxParser_INTERNAL(void *network, void *given, int32_t version) {
    (void)given, (void)version;
    int64_t id = ask(((Object *)network)->impl, "create_parser", 0, 0);
    Impl *parser = calloc(1, sizeof *parser);
    *parser = (Impl){parser_table, id, "IParser"};
    return parser;
}
void *createInferRefitter_INTERNAL(void) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void) { return 0; }
void *getPluginRegistry(void) { return 0; }
void *getBuilderPluginRegistry(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
bool initLibNvInferPlugins(void *given, const char *space) {
    (void)given;
    return ask(0, "init_plugins", space, 0);
}
/* Called by a plugin library when it is loaded, as a static registrar does: the operator that it brings. */
void fake_register(const char *operator) { ask(0, "register", operator, 0); }

/* Old parsers that the bindings of TensorRT 8 ask for, by their mangled names. */
void *_ZN11nvuffparser15createUffParserEv(void) { return 0; }
void *_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi(void) { return 0; }
void *_ZN14nvcaffeparser117createCaffeParserEv(void) { return 0; }
void *_ZN14nvcaffeparser123shutdownProtobufLibraryEv(void) { return 0; }
