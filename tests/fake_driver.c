/* A libcuda.so.1 for machines without a GPU: device memory is host memory, copies happen at once, and a
 * launch is only recorded. Tests set and read its variables by name; types are reduced to what the C ABI
 * needs. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, DEINITIALIZED = 4, NO_DEVICE = 100, TIMEOUT = 909 };
enum { CAPTURE_MODE_RELAXED = 2 };
enum { ATTRIBUTE_NUM_SMS = 16, ATTRIBUTE_MAJOR = 75, ATTRIBUTE_MINOR = 76 };

/* The machine. */
int driver_version = 13000;
int num_devices = 1;
int capability = 90;
int kernel_param_bytes = 896; /* of attention */
int profiled_param_bytes = 960;
int append_param_bytes = 232;
int merge_param_bytes = 216;
int kv_lens_param_bytes = 8;
int is_capturing = 0;
int is_gone = 0; /* it answers as at the end of a process */
int record_result = SUCCESS;
int holds_waits = 0; /* an event is reached when this becomes 0, or after some seconds */

/* What was asked of it. */
int num_unsafe_calls = 0; /* that invalidate a capture of another thread: not in relaxed mode */
int num_loads = 0;        /* of functions */
int num_host_buffers = 0; /* that are allocated now */
int num_events = 0;       /* that exist now */
int num_timeouts = 0;
int num_waits = 0; /* on events that were recorded */
int num_copies = 0;
uint64_t copied_bytes = 0; /* by the last copy */
int num_maps = 0;
int num_launches = 0;
const char* launch_name = ""; /* of the last kernel */
unsigned launch_config[7];    /* grid, block, shared bytes */
unsigned char launch_params[960];
int launch_overlaps = 0; /* programmatic dependent launch */

/* The end of a CUlaunchConfig, behind the stream. */
enum { LAUNCH_ATTRIBUTES = 40, PROGRAMMATIC_STREAM_SERIALIZATION = 6 };
struct launch_attribute {
  int id;
  int padding;
  int value[16];
};
struct launch_attributes {
  const struct launch_attribute* first;
  unsigned count;
};

struct map_request {
  int data_type;
  unsigned rank;
  uint64_t address, dims[5], strides[4];
  unsigned box[5];
} map_request; /* the last */

static int current_context = 0;
static __thread int capture_mode = 0; /* global */

int thread_capture_mode(void) { return capture_mode; }
int cuThreadExchangeStreamCaptureMode(int* mode) {
  int previous = capture_mode;
  capture_mode = *mode;
  return *mode = previous, SUCCESS;
}
static void unsafe_call(void) { num_unsafe_calls += capture_mode != CAPTURE_MODE_RELAXED; }

int cuDriverGetVersion(int* version) { return *version = driver_version, SUCCESS; }
int cuInit(unsigned flags) { return (void)flags, num_devices > 0 ? SUCCESS : NO_DEVICE; }
int cuGetErrorString(int error, const char** text) { return (void)error, *text = "made up", SUCCESS; }
int cuDeviceGetCount(int* count) { return *count = num_devices, SUCCESS; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, SUCCESS; }
int cuDeviceGetName(char* name, int size, int device) {
  return (void)device, strncpy(name, "Fake GPU", size), SUCCESS;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  if (attribute == ATTRIBUTE_NUM_SMS) return *value = 132, SUCCESS;
  if (attribute == ATTRIBUTE_MAJOR) return *value = capability / 10, SUCCESS;
  if (attribute == ATTRIBUTE_MINOR) return *value = capability % 10, SUCCESS;
  return INVALID_VALUE;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  return (void)device, *context = &num_devices, SUCCESS;
}
int cuDevicePrimaryCtxRelease(int device) { return (void)device, SUCCESS; }
int cuCtxGetCurrent(void** context) {
  return *context = current_context ? &num_devices : 0, is_gone ? DEINITIALIZED : SUCCESS;
}
int cuCtxPushCurrent(void* context) { return (void)context, current_context++, SUCCESS; }
int cuCtxPopCurrent(void** context) { return *context = &num_devices, current_context--, SUCCESS; }

int cuLibraryLoadData(void** library, const void* code, void* a, void* b, unsigned c, void* d, void* e,
                      unsigned f) {
  unsafe_call();
  return (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, *library = (void*)code, SUCCESS;
}

/* A CUkernel, and its CUfunction. */
static struct kernel {
  const char* name;
  int* param_bytes;
} kernels[] = {
    {"onewave_attention", &kernel_param_bytes},   {"onewave_attention_profiled", &profiled_param_bytes},
    {"onewave_append", &append_param_bytes},      {"onewave_append_fp8", &append_param_bytes},
    {"onewave_merge_states", &merge_param_bytes}, {"onewave_update_kv_lens", &kv_lens_param_bytes}};

int cuLibraryGetKernel(struct kernel** kernel, void* library, const char* name) {
  (void)library;
  for (unsigned i = 0; i < sizeof(kernels) / sizeof(kernels[0]); i++)
    if (strcmp(name, kernels[i].name) == 0) return *kernel = &kernels[i], SUCCESS;
  return INVALID_VALUE;
}
int cuKernelGetFunction(void** function, void* kernel) { return unsafe_call(), *function = kernel, SUCCESS; }
int cuFuncLoad(void* function) { return (void)function, unsafe_call(), num_loads++, SUCCESS; }
int cuKernelGetParamInfo(struct kernel* kernel, size_t idx, size_t* offset, size_t* size) {
  return (void)idx, *offset = 0, *size = *kernel->param_bytes, SUCCESS;
}
int cuKernelSetAttribute(int attribute, int value, void* kernel, int device) {
  return (void)attribute, (void)value, (void)kernel, (void)device, SUCCESS;
}

int cuMemHostAlloc(void** data, size_t size, unsigned flags) {
  unsafe_call(), num_host_buffers++;
  return (void)flags, *data = aligned_alloc(4096, (size + 4095) / 4096 * 4096), SUCCESS;
}
int cuMemFreeHost(void* data) {
  unsafe_call(), num_host_buffers--;
  return free(data), SUCCESS;
}
int cuMemcpyHtoDAsync(uint64_t destination, const void* source, size_t size, void* stream) {
  (void)stream;
  memcpy((void*)destination, source, size);
  num_copies++;
  copied_bytes = size;
  return SUCCESS;
}

/* An event is an int: was it recorded? */
int cuEventCreate(int** event, unsigned flags) {
  return (void)flags, num_events++, *event = calloc(1, sizeof(int)), SUCCESS;
}
int cuEventRecord(int* event, void* stream) {
  return (void)stream, *event |= record_result == SUCCESS, record_result;
}
int cuEventSynchronize(int* event) {
  unsafe_call(), num_waits += *event;
  for (int i = 0; *event && *(volatile int*)&holds_waits; i++) {
    if (i == 3000) return num_timeouts++, TIMEOUT;
    usleep(1000);
  }
  return SUCCESS;
}
int cuEventDestroy(int* event) { return free(event), num_events--, SUCCESS; }
int cuStreamIsCapturing(void* stream, int* status) { return (void)stream, *status = is_capturing, SUCCESS; }

int cuTensorMapEncodeTiled(void* map, int data_type, unsigned rank, void* address, const uint64_t* dims,
                           const uint64_t* strides, const unsigned* box) {
  memset(map, 0, 128);
  map_request = (struct map_request){.data_type = data_type, .rank = rank, .address = (uint64_t)address};
  memcpy(map_request.dims, dims, sizeof(map_request.dims));
  memcpy(map_request.strides, strides, sizeof(map_request.strides));
  memcpy(map_request.box, box, sizeof(map_request.box));
  num_maps++;
  return SUCCESS;
}
int cuLaunchKernelEx(const unsigned* config, struct kernel* function, void** params, void** extra) {
  (void)extra;
  launch_name = function->name;
  memcpy(launch_config, config, sizeof(launch_config));
  memcpy(launch_params, params[0], *function->param_bytes);
  launch_overlaps = 0;
  const struct launch_attributes* rest = (const void*)((const char*)config + LAUNCH_ATTRIBUTES);
  for (unsigned i = 0; i < rest->count; i++)
    launch_overlaps |= rest->first[i].id == PROGRAMMATIC_STREAM_SERIALIZATION && rest->first[i].value[0] == 1;
  num_launches++;
  return current_context > 0 ? SUCCESS : INVALID_VALUE;
}

int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags, int* status) {
  (void)version, (void)flags, *status = 0;
  *function = dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), name);
  return SUCCESS;
}
