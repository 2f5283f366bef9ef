// What the parts of the null GPU share: exported symbols, counters and work put on a stream.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <mutex>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

// One lock for all state: nothing here is fast, and nothing has to be.
std::recursive_mutex& state_lock();
#define LOCKED std::lock_guard<std::recursive_mutex> state_guard(state_lock())

// Adds to a counter that `nullgpu_counters` reports.
void count(const std::string& name, long amount = 1);

// Tells the listener of `nullgpu_listen`, if there is one, before it happens. Never call it with the lock held: the
// listener is Python's, and waits for the interpreter.
void announce(const char* what);

// An error of CUDA's: counted, written to standard error, remembered for cudaGetLastError.
cudaError_t fail(cudaError_t error, const std::string& what);
cudaError_t set_last_error(cudaError_t error);

// Work on a stream: recorded by a capture, or done (that is, counted).
cudaError_t work(cudaStream_t stream, const char* what);
bool is_capturing(cudaStream_t stream);
cudaError_t invalidate(cudaStream_t stream, cudaError_t error, const char* what);

// A call that CUDA forbids while a capture is under way that this thread takes part in (or any, in global mode).
cudaError_t unless_capturing(const char* what);
