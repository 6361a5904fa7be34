/* A libcuda whose every call succeeds and does nothing; a launch is handed to `on_launch`, if one is set. Launches on a
   stream that captures are kept with their parameters; a launch of the graph hands them on. A launch that a GPU would
   refuse is an error: for its size, or from a thread without a context, which only the first has by itself, or with that
   of another device than the kernel was loaded for. A device's context is its number and 1.

   Triton 3.6 and 3.7 load, link and launch against it. cuda.h is the one in Triton's wheel. */
#include <stdlib.h>
#include <string.h>
#include "cuda.h"
#undef cuPointerGetAttribute

typedef void (*launch_callback)(void *function, const unsigned *grid, unsigned threads, unsigned shared, void *stream,
                                void **params);
static launch_callback on_launch;
static size_t functions = 0;
static size_t launches = 0;

void stub_on_launch(launch_callback callback) { on_launch = callback; }
size_t stub_launches(void) { return launches; }

/* --- what is captured --- */
#define MOST 256
typedef struct { CUlaunchConfig config; CUfunction function; char *memory; void *params[MOST]; } Node;
typedef struct { Node *nodes; size_t count; } Recording;
typedef struct { int count, sizes[MOST]; } Parameters;

static Parameters *parameters = 0; /* by function: handles are multiples of 16, from 16 on */
static CUstream captures = 0;
static Recording *recording = 0;
static int fails = 0; /* how the next capture ends: 0, or an error */

void stub_parameters(size_t function, int count, const int *sizes) {
  parameters = realloc(parameters, (functions + 1) * sizeof *parameters);
  parameters[function / 16].count = count;
  memcpy(parameters[function / 16].sizes, sizes, count * sizeof *sizes);
}

void stub_fail_capture(int error) { fails = error; }

static void keep(const CUlaunchConfig *config, CUfunction function, void **params) {
  const Parameters *known = &parameters[(size_t)function / 16];
  recording->nodes = realloc(recording->nodes, (recording->count + 1) * sizeof(Node));
  Node *node = &recording->nodes[recording->count++];
  node->config = *config;
  node->function = function;
  node->memory = malloc(16 * known->count + 1);
  for (int i = 0; i < known->count; i++)
    node->params[i] = memcpy(node->memory + 16 * i, params[i], known->sizes[i] <= 16 ? known->sizes[i] : 16);
}

static CUresult hand_on(const CUlaunchConfig *config, CUfunction function, CUstream stream, void **params) {
  ++launches;
  if (on_launch)
    on_launch(function, &config->gridDimX, config->blockDimX * config->blockDimY * config->blockDimZ,
              config->sharedMemBytes, stream, params);
  return CUDA_SUCCESS;
}

static __thread CUcontext current = 0;
__attribute__((constructor)) static void begin(void) { current = (CUcontext)1; }
static CUcontext *owners = 0; /* by function: the context it was loaded in */
static int devices = 1;

void stub_devices(int count) { devices = count; }
CUresult cuDeviceGetCount(int *count) { *count = devices; return CUDA_SUCCESS; }

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  if (owners[(size_t)function / 16] != current) return CUDA_ERROR_INVALID_HANDLE;
  unsigned threads = config->blockDimX * config->blockDimY * config->blockDimZ;
  if (!config->gridDimX || !config->gridDimY || !config->gridDimZ || config->gridDimX > 0x7fffffff ||
      config->gridDimY > 65535 || config->gridDimZ > 65535 || !threads || threads > 1024 ||
      config->sharedMemBytes > 232448)
    return CUDA_ERROR_INVALID_VALUE;
  if (recording && config->hStream == captures) {
    keep(config, function, params);
    return CUDA_SUCCESS;
  }
  return hand_on(config, function, config->hStream, params);
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags) { *stream = (CUstream)0x4000; return CUDA_SUCCESS; }

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
  if (!stream) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (recording) return CUDA_ERROR_ILLEGAL_STATE;
  captures = stream;
  recording = calloc(1, sizeof *recording);
  return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
  if (!recording || stream != captures) return CUDA_ERROR_ILLEGAL_STATE;
  CUresult result = fails;
  *graph = fails ? NULL : (CUgraph)recording;
  recording = NULL;
  fails = 0;
  return result;
}

/* The graph and what is made ready of it are one here. */
CUresult cuGraphInstantiateWithFlags(CUgraphExec *ready, CUgraph graph, unsigned long long flags) {
  *ready = (CUgraphExec)graph;
  return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec ready, CUstream stream) {
  const Recording *kept = (Recording *)ready;
  for (size_t i = 0; i < kept->count; i++)
    hand_on(&kept->nodes[i].config, kept->nodes[i].function, stream, kept->nodes[i].params);
  return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) { return CUDA_SUCCESS; }

CUresult cuGraphExecDestroy(CUgraphExec ready) {
  Recording *kept = (Recording *)ready;
  for (size_t i = 0; i < kept->count; i++) free(kept->nodes[i].memory);
  free(kept->nodes);
  free(kept);
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  *module = (CUmodule)8;
  return CUDA_SUCCESS;
}

/* Each kernel gets a handle of its own. */
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)(16 * ++functions);
  owners = realloc(owners, (functions + 1) * sizeof *owners);
  owners[functions] = current;
  return CUDA_SUCCESS;
}

/* An H200's figures. */
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 233472; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  default: *value = 1000;
  }
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = "an error of the stub driver";
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)data = pointer;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) { *context = current; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { current = context; return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 0; return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = ordinal; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = (CUcontext)(size_t)(device + 1);
  return CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction function, const CUlaunchConfig *config) {
  *count = 1;
  return CUDA_SUCCESS;
}

/* Triton's driver module links to these and never calls them here. */
CUresult cuPointerGetAttributes(unsigned n, CUpointer_attribute *a, void **data, CUdeviceptr p) { return CUDA_SUCCESS; }
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  memset(map, 0, sizeof *map);
  return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeIm2col(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                 const cuuint64_t *sizes, const cuuint64_t *strides, const int *low, const int *high,
                                 cuuint32_t channels, cuuint32_t pixels, const cuuint32_t *steps,
                                 CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                 CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  memset(map, 0, sizeof *map);
  return CUDA_SUCCESS;
}
