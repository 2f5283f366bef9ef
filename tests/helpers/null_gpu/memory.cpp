// Device memory that is host memory, pinned memory, and copies between them, each counted by its kind.
#include "null_gpu.h"

#include <sys/mman.h>

#include <cstring>
#include <map>

namespace {
constexpr size_t TOTAL = 80ull << 30;
constexpr size_t MOVED = 1 << 20;  // bytes up to which a copy on the device really happens

std::map<char*, size_t> device_memory, pinned_memory;

size_t used() {
  size_t sum = 0;
  for (auto& block : device_memory) sum += block.second;
  return sum;
}
// Reserved only: a page costs memory when it is first written.
void* reserve(size_t size) {
  void* block =
      mmap(nullptr, size ? size : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return block == MAP_FAILED ? nullptr : block;
}
void release(std::map<char*, size_t>& memory, void* block) {
  auto found = memory.find(static_cast<char*>(block));
  if (found == memory.end()) return;
  munmap(block, found->second ? found->second : 1);
  memory.erase(found);
}
bool inside(const std::map<char*, size_t>& memory, const void* address) {
  auto* place = static_cast<char*>(const_cast<void*>(address));
  auto after = memory.upper_bound(place);
  if (after == memory.begin()) return false;
  auto block = std::prev(after);
  return place < block->first + (block->second ? block->second : 1);
}

struct Copy {
  bool to_device, from_device, pageable;
  const char* name;
};
Copy kind_of(const void* target, const void* source) {
  LOCKED;
  bool to = inside(device_memory, target), from = inside(device_memory, source);
  if (to == from) return {to, from, false, to ? "copy on the device" : "copy on the host"};
  bool pinned = inside(pinned_memory, from ? target : source);
  if (from) return {to, from, !pinned, pinned ? "pinned copy to the host" : "pageable copy to the host"};
  return {to, from, !pinned, pinned ? "pinned copy to the device" : "pageable copy to the device"};
}
}  // namespace

EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  LOCKED;
  *total = TOTAL;
  *free = TOTAL - used();
  return cudaSuccess;
}
EXPORT cudaError_t cudaMalloc(void** block, size_t size) {
  LOCKED;
  count("cudaMalloc");
  if (auto error = unless_capturing("cudaMalloc")) return error;
  if (used() + size > TOTAL) return set_last_error(cudaErrorMemoryAllocation);
  *block = reserve(size);
  device_memory[static_cast<char*>(*block)] = size;
  return cudaSuccess;
}
EXPORT cudaError_t cudaFree(void* block) {
  LOCKED;
  if (!block) return cudaSuccess;
  if (auto error = unless_capturing("cudaFree")) return error;
  release(device_memory, block);
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostAlloc(void** block, size_t size, unsigned) {
  LOCKED;
  count("cudaHostAlloc");
  if (auto error = unless_capturing("cudaHostAlloc")) return error;
  *block = reserve(size);
  pinned_memory[static_cast<char*>(*block)] = size;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMallocHost(void** block, size_t size) { return cudaHostAlloc(block, size, 0); }
EXPORT cudaError_t cudaFreeHost(void* block) {
  LOCKED;
  release(pinned_memory, block);
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostRegister(void* block, size_t size, unsigned) {
  LOCKED;
  pinned_memory[static_cast<char*>(block)] = size;
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostUnregister(void* block) {
  LOCKED;
  pinned_memory.erase(static_cast<char*>(block));
  return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  LOCKED;
  memset(attributes, 0, sizeof *attributes);
  bool device = inside(device_memory, address), pinned = inside(pinned_memory, address);
  attributes->type = device ? cudaMemoryTypeDevice : pinned ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  attributes->device = device || pinned ? 0 : -2;
  attributes->devicePointer = attributes->hostPointer = const_cast<void*>(address);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy(void* target, const void* source, size_t size, cudaMemcpyKind) {
  announce("cudaMemcpy");
  count(std::string("waiting ") + kind_of(target, source).name);
  if (auto error = unless_capturing("cudaMemcpy")) return error;
  memmove(target, source, size);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t size, cudaMemcpyKind, cudaStream_t stream) {
  Copy copy = kind_of(target, source);
  if (copy.pageable) announce(copy.name);
  LOCKED;
  bool captured = is_capturing(stream);
  // CUDA refuses the one, and would replay the other from memory that is gone by then.
  if (captured && copy.pageable) return invalidate(stream, cudaErrorStreamCaptureUnsupported, copy.name);
  if (auto error = work(stream, copy.name)) return error;
  bool moves = size < MOVED || !(copy.to_device && copy.from_device);
  if (!captured && moves) memmove(target, source, size);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy2DAsync(void* target, size_t target_pitch, const void* source, size_t source_pitch,
                                     size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  if (auto error = work(stream, kind_of(target, source).name)) return error;
  if (!is_capturing(stream))
    for (size_t row = 0; row < height; row++)
      memmove(static_cast<char*>(target) + row * target_pitch, static_cast<const char*>(source) + row * source_pitch,
              width);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void* target, int, const void* source, int, size_t size, cudaStream_t stream) {
  if (auto error = work(stream, "copy between devices")) return error;
  if (!is_capturing(stream)) memmove(target, source, size);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void* target, int value, size_t size, cudaStream_t stream) {
  if (auto error = work(stream, "memset")) return error;
  if (!is_capturing(stream) && size < MOVED) memset(target, value, size);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemset(void* target, int value, size_t size) {
  return cudaMemsetAsync(target, value, size, nullptr);
}
