// NCCL between processes that exchange nothing: calls and bytes are counted, contiguous memory stays as it was.
#include <nccl.h>

#include <cstdlib>
#include <cstring>

#include "null_gpu.h"

namespace {
struct Communicator {
  int size, rank;
  char rest[256];
};
size_t width(ncclDataType_t type) {
  switch (type) {
    case ncclFloat16:
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32: return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64: return 8;
    default: return 1;
  }
}
ncclResult_t make(ncclComm_t* made, int size, int rank) {
  *made = reinterpret_cast<ncclComm_t>(new Communicator{size, rank, {}});
  return ncclSuccess;
}
Communicator* of(ncclComm_t communicator) { return reinterpret_cast<Communicator*>(communicator); }

// One collective call on a stream; `bytes` is what this process hands in.
ncclResult_t collective(const char* name, const void* source, void* target, size_t bytes, cudaStream_t stream) {
  if (work(stream, name)) return ncclUnhandledCudaError;
  count(std::string(name) + " bytes", bytes);
  if (!is_capturing(stream) && source != target && bytes < (1u << 20)) memmove(target, source, bytes);
  return ncclSuccess;
}
}  // namespace

#define NCCL EXPORT ncclResult_t
NCCL ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
NCCL ncclGetUniqueId(ncclUniqueId* id) {
  memset(id, 7, sizeof *id);
  return ncclSuccess;
}
NCCL ncclCommInitRank(ncclComm_t* made, int size, ncclUniqueId, int rank) { return make(made, size, rank); }
NCCL ncclCommInitRankConfig(ncclComm_t* made, int size, ncclUniqueId, int rank, ncclConfig_t*) {
  return make(made, size, rank);
}
NCCL ncclCommInitRankScalable(ncclComm_t* made, int size, int rank, int, ncclUniqueId*, ncclConfig_t*) {
  return make(made, size, rank);
}
NCCL ncclCommSplit(ncclComm_t whole, int, int, ncclComm_t* made, ncclConfig_t*) {
  return make(made, of(whole)->size, of(whole)->rank);
}
NCCL ncclCommShrink(ncclComm_t whole, int*, int, ncclComm_t* made, ncclConfig_t*, int) {
  return make(made, of(whole)->size, of(whole)->rank);
}
NCCL ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
  *error = ncclSuccess;
  return ncclSuccess;
}
NCCL ncclCommCount(const ncclComm_t communicator, int* size) {
  *size = of(communicator)->size;
  return ncclSuccess;
}
NCCL ncclCommUserRank(const ncclComm_t communicator, int* rank) {
  *rank = of(communicator)->rank;
  return ncclSuccess;
}
NCCL ncclCommCuDevice(const ncclComm_t, int* device) {
  *device = 0;
  return ncclSuccess;
}
NCCL ncclRedOpCreatePreMulSum(ncclRedOp_t* made, void*, ncclDataType_t, ncclScalarResidence_t, ncclComm_t) {
  *made = ncclSum;
  return ncclSuccess;
}
EXPORT const char* ncclGetErrorString(ncclResult_t) { return "null NCCL"; }
EXPORT const char* ncclGetLastError(ncclComm_t) { return "null NCCL"; }

NCCL ncclAllReduce(const void* source, void* target, size_t n, ncclDataType_t type, ncclRedOp_t, ncclComm_t,
                   cudaStream_t stream) {
  return collective("all-reduce", source, target, n * width(type), stream);
}
NCCL ncclReduce(const void* source, void* target, size_t n, ncclDataType_t type, ncclRedOp_t, int, ncclComm_t,
                cudaStream_t stream) {
  return collective("reduce", source, target, n * width(type), stream);
}
NCCL ncclReduceScatter(const void* source, void* target, size_t n, ncclDataType_t type, ncclRedOp_t, ncclComm_t,
                       cudaStream_t stream) {
  return collective("reduce-scatter", source, target, n * width(type), stream);
}
NCCL ncclAllGather(const void* source, void* target, size_t n, ncclDataType_t type, ncclComm_t, cudaStream_t stream) {
  return collective("all-gather", source, target, n * width(type), stream);
}
NCCL ncclBroadcast(const void* source, void* target, size_t n, ncclDataType_t type, int, ncclComm_t,
                   cudaStream_t stream) {
  return collective("broadcast", source, target, n * width(type), stream);
}
NCCL ncclBcast(void* target, size_t n, ncclDataType_t type, int, ncclComm_t, cudaStream_t stream) {
  return collective("broadcast", target, target, n * width(type), stream);
}
