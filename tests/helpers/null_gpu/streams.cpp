// Streams, events, captures and graphs, with the rules of the CUDA programming guide ("Cross-stream dependencies and
// events", "Prohibited and unhandled operations"): nothing is executed, everything is counted.
#include "null_gpu.h"

#include <pthread.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <set>

namespace {
struct Graph {
  long nodes = 0;
};
struct Capture {
  unsigned long long id;
  cudaStreamCaptureMode mode;
  pthread_t thread;
  Graph* graph;
  std::set<struct Stream*> streams;
  bool valid = true;
};
struct Stream {
  unsigned flags = 0;
  Capture* capture = nullptr;
};
struct Event {
  Capture* capture = nullptr;
  bool recorded = false;
};

std::set<Capture*> captures;
std::map<std::string, long> counters;
Stream legacy, per_thread;
unsigned long long next_id = 1;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
thread_local cudaError_t last_error = cudaSuccess;
void (*listener)(const char*) = nullptr;

Stream* stream_of(cudaStream_t handle) {
  if (!handle || handle == cudaStreamLegacy) return &legacy;
  return handle == cudaStreamPerThread ? &per_thread : reinterpret_cast<Stream*>(handle);
}
Event* event_of(cudaEvent_t handle) { return reinterpret_cast<Event*>(handle); }
Capture* running_capture(Event* event) { return captures.count(event->capture) ? event->capture : nullptr; }

// The legacy stream waits for every blocking stream, so using it breaks the captures of those.
Capture* broken_by(Stream* stream) {
  if (stream != &legacy) return nullptr;
  for (auto* capture : captures)
    for (auto* member : capture->streams)
      if (!(member->flags & cudaStreamNonBlocking)) return capture;
  return nullptr;
}
cudaStreamCaptureStatus status_of(Capture* capture) {
  if (!capture) return cudaStreamCaptureStatusNone;
  return capture->valid ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusInvalidated;
}
cudaError_t spoil(Capture* capture, cudaError_t error, const char* what) {
  capture->valid = false;
  return fail(error, what);
}
}  // namespace

std::recursive_mutex& state_lock() {
  static std::recursive_mutex lock;
  return lock;
}
void count(const std::string& name, long amount) {
  LOCKED;
  counters[name] += amount;
}
void announce(const char* what) {
  if (listener) listener(what);
}
cudaError_t set_last_error(cudaError_t error) { return last_error = error; }
cudaError_t fail(cudaError_t error, const std::string& what) {
  count("error");
  fprintf(stderr, "[null gpu] %s: CUDA error %d\n", what.c_str(), static_cast<int>(error));
  return set_last_error(error);
}
bool is_capturing(cudaStream_t stream) { return stream_of(stream)->capture; }
cudaError_t invalidate(cudaStream_t stream, cudaError_t error, const char* what) {
  return spoil(stream_of(stream)->capture, error, what);
}
cudaError_t unless_capturing(const char* what) {
  LOCKED;
  for (auto* capture : captures) {
    bool own = pthread_equal(capture->thread, pthread_self());
    bool forbidden =
        capture->mode == cudaStreamCaptureModeGlobal || (capture->mode == cudaStreamCaptureModeThreadLocal && own);
    if (thread_mode == cudaStreamCaptureModeRelaxed || (thread_mode == cudaStreamCaptureModeThreadLocal && !own))
      forbidden = false;
    if (forbidden) return spoil(capture, cudaErrorStreamCaptureUnsupported, what);
  }
  return cudaSuccess;
}
cudaError_t work(cudaStream_t handle, const char* what) {
  LOCKED;
  Stream* stream = stream_of(handle);
  if (Capture* capture = stream->capture) {
    if (!capture->valid) return fail(cudaErrorStreamCaptureInvalidated, what);
    capture->graph->nodes++;
    count(std::string("recorded ") + what);
    return cudaSuccess;
  }
  count(what);
  if (Capture* capture = broken_by(stream)) return spoil(capture, cudaErrorStreamCaptureImplicit, what);
  for (auto* capture : captures)
    if (pthread_equal(capture->thread, pthread_self())) count("beside a capture");
  return cudaSuccess;
}

// ---- what the tests ask --------------------------------------------------------------------------------------------
// "name<tab>number<newline>" of every counter, cut at `size`.
EXPORT void nullgpu_counters(char* text, size_t size) {
  LOCKED;
  std::string all;
  for (auto& counter : counters) all += counter.first + "\t" + std::to_string(counter.second) + "\n";
  snprintf(text, size, "%s", all.c_str());
}
EXPORT void nullgpu_reset() {
  LOCKED;
  counters.clear();
}
EXPORT void nullgpu_listen(void (*function)(const char*)) { listener = function; }
EXPORT int nullgpu_kernel(void* stream) { return work(static_cast<cudaStream_t>(stream), "kernel"); }

// ---- streams -------------------------------------------------------------------------------------------------------
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  auto* made = new Stream;
  made->flags = flags;
  *stream = reinterpret_cast<cudaStream_t>(made);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  announce("cudaStreamSynchronize");
  LOCKED;
  count("cudaStreamSynchronize");
  return is_capturing(stream) ? invalidate(stream, cudaErrorStreamCaptureUnsupported, "cudaStreamSynchronize")
                              : cudaSuccess;
}
EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) {
  LOCKED;
  return is_capturing(stream) ? invalidate(stream, cudaErrorStreamCaptureUnsupported, "cudaStreamQuery") : cudaSuccess;
}
EXPORT cudaError_t cudaDeviceSynchronize() {
  announce("cudaDeviceSynchronize");
  count("cudaDeviceSynchronize");
  return unless_capturing("cudaDeviceSynchronize");
}

// ---- events --------------------------------------------------------------------------------------------------------
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event_of(event);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
  LOCKED;
  Stream* stream = stream_of(stream_handle);
  if (stream->capture && !stream->capture->valid) return fail(cudaErrorStreamCaptureInvalidated, "cudaEventRecord");
  event_of(handle)->capture = stream->capture;
  event_of(handle)->recorded = true;
  if (Capture* capture = broken_by(stream)) return spoil(capture, cudaErrorStreamCaptureImplicit, "cudaEventRecord");
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) {
  LOCKED;
  Capture* capture = running_capture(event_of(event));
  return capture ? spoil(capture, cudaErrorCapturedEvent, "cudaEventQuery") : cudaSuccess;
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  announce("cudaEventSynchronize");
  LOCKED;
  count("cudaEventSynchronize");
  Capture* capture = running_capture(event_of(event));
  return capture ? spoil(capture, cudaErrorCapturedEvent, "cudaEventSynchronize") : cudaSuccess;
}
EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1.0f;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t event_handle, unsigned) {
  LOCKED;
  Stream* stream = stream_of(stream_handle);
  Capture* capture = running_capture(event_of(event_handle));
  if (capture && stream->capture != capture) {
    if (stream == &legacy || stream == &per_thread)
      return spoil(capture, cudaErrorStreamCaptureImplicit, "the legacy stream waits for a captured event");
    if (stream->capture) return spoil(capture, cudaErrorStreamCaptureMerge, "one capture waits for another");
    stream->capture = capture;
    capture->streams.insert(stream);
    return cudaSuccess;
  }
  if (!capture && stream->capture && event_of(event_handle)->recorded)
    return spoil(stream->capture, cudaErrorStreamCaptureIsolation,
                 "a capturing stream waits for an event from outside");
  return cudaSuccess;
}

// ---- captures and graphs -------------------------------------------------------------------------------------------
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(thread_mode, *mode);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  LOCKED;
  Stream* stream = stream_of(handle);
  if (stream == &legacy) return fail(cudaErrorStreamCaptureUnsupported, "a capture of the legacy stream");
  if (stream->capture) return fail(cudaErrorIllegalState, "a capture begun twice");
  stream->capture = new Capture{next_id++, mode, pthread_self(), new Graph, {stream}};
  captures.insert(stream->capture);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  LOCKED;
  Capture* capture = stream_of(handle)->capture;
  *graph = nullptr;
  if (!capture) return fail(cudaErrorIllegalState, "the end of no capture");
  for (auto* stream : capture->streams) stream->capture = nullptr;
  captures.erase(capture);
  if (!capture->valid) return fail(cudaErrorStreamCaptureInvalidated, "cudaStreamEndCapture");
  *graph = reinterpret_cast<cudaGraph_t>(capture->graph);
  count("capture");
  count("graph nodes", capture->graph->nodes);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  LOCKED;
  if (broken_by(stream_of(stream))) return fail(cudaErrorStreamCaptureImplicit, "cudaStreamIsCapturing");
  *status = status_of(stream_of(stream)->capture);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                            unsigned long long* id, cudaGraph_t* graph,
                                            const cudaGraphNode_t** dependencies, const cudaGraphEdgeData** edges,
                                            size_t* number) {
  LOCKED;
  Capture* capture = stream_of(stream)->capture;
  *status = status_of(capture);
  if (capture && id) *id = capture->id;
  if (capture && graph) *graph = reinterpret_cast<cudaGraph_t>(capture->graph);
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (number) *number = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(graph);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                                 unsigned long long flags) {
  return cudaGraphInstantiate(executable, graph, flags);
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t stream) { return work(stream, "graph launch"); }
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* number) {
  *number = reinterpret_cast<Graph*>(graph)->nodes;
  return cudaSuccess;
}

// ---- launches and errors -------------------------------------------------------------------------------------------
EXPORT cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return work(stream, "kernel");
}
EXPORT cudaError_t __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return work(stream, "kernel");
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  return work(config->stream, "kernel");
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  if (auto error = work(stream, "host function")) return error;
  if (!is_capturing(stream)) function(data);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void* data, unsigned) {
  if (auto error = work(stream, "host function")) return error;
  function(stream, cudaSuccess, data);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetLastError() {
  auto error = last_error;
  last_error = cudaSuccess;
  return error;
}
EXPORT cudaError_t cudaPeekAtLastError() { return last_error; }
EXPORT const char* cudaGetErrorString(cudaError_t error) {
  static thread_local char text[32];
  snprintf(text, sizeof text, "null gpu error %d", static_cast<int>(error));
  return text;
}
EXPORT const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }
