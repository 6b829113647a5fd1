/* A libcudart for machines without a GPU: device memory is the host's, streams run at once, a captured graph
 * is a list of what was copied and launched meanwhile. It lets the real ctypes path be tested, and a fake engine
 * be fed. FAKE_CUDA_FREE_MB sets how much is "free"; what is taken is subtracted, so that memory can run out.
 * FAKE_CUDA_FAILS is the status that the next wait for a stream gives, and every call after it: a kernel that
 * failed leaves no usable context, until fake_recover. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, TOTAL_MB = 8000 };
typedef struct { void *to; const void *from; size_t bytes; } Copy;
typedef struct { Copy copies[64]; int n; } Graph;
typedef struct { Graph *capturing; } Stream;
typedef struct { struct timespec at; } Event;
typedef struct { void *address; size_t bytes; } Block;

static Block blocks[4096];
static size_t taken, copied, synchronized_times;
static int broken;
static unsigned device_flags;

static size_t room(void) {
    const char *mb = getenv("FAKE_CUDA_FREE_MB");
    size_t free_bytes = (mb ? strtoull(mb, 0, 10) : TOTAL_MB / 2) * 1000000u;
    return free_bytes > taken ? free_bytes - taken : 0;
}
static int take(void **address, size_t bytes) {
    if (broken) return broken;
    if (bytes > room() || posix_memalign(address, 256, bytes ? bytes : 256)) return NO_MEMORY;
    for (int i = 0; i < 4096; i++)
        if (!blocks[i].address) {
            blocks[i].address = *address, blocks[i].bytes = bytes, taken += bytes;
            return OK;
        }
    return NO_MEMORY;
}
static int give(void *address) {
    if (broken) return broken;
    for (int i = 0; address && i < 4096; i++)
        if (blocks[i].address == address) {
            taken -= blocks[i].bytes, blocks[i].address = 0;
            free(address);
            return OK;
        }
    return address ? INVALID : OK;
}

size_t fake_taken(void) { return taken; }
size_t fake_copied(void) { return copied; }
size_t fake_synchronized(void) { return synchronized_times; }
void fake_recover(void) { broken = 0; }
/* Asked by a fake engine: 1 if the stream is being captured, and then `work(with)` is part of its graph. */
int fake_capture(void *stream, void (*work)(const void *), const void *with) {
    Graph *graph = stream ? ((Stream *)stream)->capturing : 0;
    if (!graph || graph->n == 64) return 0;
    Copy *copy = &graph->copies[graph->n++];
    memcpy(&copy->to, &work, sizeof work);
    copy->from = with, copy->bytes = 0;
    return 1;
}

enum { ILLEGAL_ADDRESS = 700 };
const char *cudaGetErrorName(int status) {
    switch (status) {
        case OK: return "cudaSuccess";
        case NO_MEMORY: return "cudaErrorMemoryAllocation";
        case ILLEGAL_ADDRESS: return "cudaErrorIllegalAddress";
    }
    return "cudaErrorInvalidValue";
}
const char *cudaGetErrorString(int status) {
    switch (status) {
        case OK: return "no error";
        case NO_MEMORY: return "out of memory";
        case ILLEGAL_ADDRESS: return "an illegal memory access was encountered";
    }
    return "invalid argument";
}
int cudaSetDevice(int device) { return device ? INVALID : OK; }
int cudaSetDeviceFlags(unsigned flags) {
    if (flags != 0 && flags != 1 && flags != 2 && flags != 4) return INVALID;
    device_flags = flags;
    return OK;
}
int cudaGetDeviceFlags(unsigned *flags) { *flags = device_flags; return OK; }
int cudaDriverGetVersion(int *version) { *version = 12060; return OK; }
int cudaRuntimeGetVersion(int *version) { *version = 12060; return OK; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    const char *integrated = getenv("FAKE_CUDA_INTEGRATED");
    switch (attribute) {
        case 16: *value = 8; return OK;
        case 18: *value = integrated ? atoi(integrated) : 1; return OK;
        case 19: *value = 1; return OK;
        case 75: *value = 8; return OK;
        case 76: *value = 7; return OK;
    }
    return INVALID;
}
int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *free_bytes = room(), *total = TOTAL_MB * 1000000ull;
    return OK;
}
int cudaMalloc(void **address, size_t bytes) { return take(address, bytes); }
int cudaFree(void *address) { return give(address); }
int cudaHostAlloc(void **address, size_t bytes, unsigned flags) { (void)flags; return take(address, bytes); }
int cudaFreeHost(void *address) { return give(address); }
int cudaHostGetDevicePointer(void **device, void *host, unsigned flags) {
    *device = host;
    return flags ? INVALID : OK;
}
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    if (broken) return broken;
    if (kind != 1 && kind != 2) return INVALID;
    Graph *graph = stream ? ((Stream *)stream)->capturing : 0;
    if (graph) {
        if (graph->n == 64) return INVALID;
        graph->copies[graph->n++] = (Copy){to, from, bytes};
        return OK;
    }
    copied += bytes;
    memcpy(to, from, bytes);
    return OK;
}
int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
    if (flags != 1) return INVALID;
    return (*stream = calloc(1, sizeof(Stream))) ? OK : NO_MEMORY;
}
int cudaStreamSynchronize(void *stream) {
    if (stream && ((Stream *)stream)->capturing) return INVALID;
    synchronized_times++;
    const char *fails = getenv("FAKE_CUDA_FAILS");
    return broken = broken ? broken : fails ? atoi(fails) : OK;
}
int cudaStreamDestroy(void *stream) { free(stream); return OK; }
int cudaStreamBeginCapture(void *stream, int mode) {
    Stream *s = stream;
    if (!s || s->capturing || mode < 0 || mode > 2) return INVALID;
    return (s->capturing = calloc(1, sizeof(Graph))) ? OK : NO_MEMORY;
}
int cudaStreamEndCapture(void *stream, void **graph) {
    Stream *s = stream;
    if (!s || !s->capturing) return INVALID;
    *graph = s->capturing, s->capturing = 0;
    return OK;
}
int cudaGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) {
    if (flags || !(*exec = malloc(sizeof(Graph)))) return INVALID;
    memcpy(*exec, graph, sizeof(Graph));
    return OK;
}
/* An engine that was captured leaves a copy of no bytes: a call of `to` with `from`. */
int cudaGraphLaunch(void *exec, void *stream) {
    Graph *graph = exec;
    for (int i = 0; i < graph->n; i++) {
        Copy *copy = &graph->copies[i];
        if (copy->bytes) {
            int status = cudaMemcpyAsync(copy->to, copy->from, copy->bytes, 1, stream);
            if (status) return status;
        } else {
            void (*work)(const void *) = 0;
            memcpy(&work, &copy->to, sizeof work);
            work(copy->from);
        }
    }
    return OK;
}
int cudaGraphDestroy(void *graph) { free(graph); return OK; }
int cudaGraphExecDestroy(void *exec) { free(exec); return OK; }
