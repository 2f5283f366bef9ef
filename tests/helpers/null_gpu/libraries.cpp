// Calls of cuBLAS, cuBLASLt and cuDNN that must hand something back, or name the stream they work on.
// Products and convolutions count as one kernel each; `build.py` adds what is not here.
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cudnn.h>

#include <cstdlib>
#include <cstring>

#include "null_gpu.h"

namespace {
// Every handle and descriptor; a handle's first field is its stream.
struct Handle {
  cudaStream_t stream = nullptr;
  char rest[256] = {};
};
template <typename Pointer>
int make(Pointer* handle) {
  *handle = reinterpret_cast<Pointer>(new Handle);
  return 0;
}
}  // namespace

// A call on a handle, for the generated functions.
extern "C" int nullgpu_on_handle(void* handle) { return work(static_cast<Handle*>(handle)->stream, "kernel"); }

#define BLAS EXPORT cublasStatus_t
BLAS cublasCreate_v2(cublasHandle_t* handle) { return cublasStatus_t(make(handle)); }
BLAS cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  reinterpret_cast<Handle*>(handle)->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}
BLAS cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t* mode) {
  *mode = CUBLAS_POINTER_MODE_HOST;
  return CUBLAS_STATUS_SUCCESS;
}
BLAS cublasGetMathMode(cublasHandle_t, cublasMath_t* mode) {
  *mode = CUBLAS_DEFAULT_MATH;
  return CUBLAS_STATUS_SUCCESS;
}
BLAS cublasGetVersion_v2(cublasHandle_t, int* version) {
  *version = CUBLAS_VERSION;
  return CUBLAS_STATUS_SUCCESS;
}
EXPORT size_t cublasLtGetVersion() { return CUBLAS_VERSION; }
EXPORT size_t cublasLtGetCudartVersion() { return CUDART_VERSION; }
BLAS cublasLtCreate(cublasLtHandle_t* handle) { return cublasStatus_t(make(handle)); }
BLAS cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* made, cublasComputeType_t, cudaDataType_t) {
  return cublasStatus_t(make(made));
}
BLAS cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* made, cudaDataType, uint64_t, uint64_t, int64_t) {
  return cublasStatus_t(make(made));
}
BLAS cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* made) { return cublasStatus_t(make(made)); }
BLAS cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                    cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                    cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t results[],
                                    int* number) {
  memset(results, 0, sizeof results[0]);
  *number = 1;
  return CUBLAS_STATUS_SUCCESS;
}
BLAS cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t, const void*, const void*, cublasLtMatrixLayout_t,
                    const void*, cublasLtMatrixLayout_t, const void*, const void*, cublasLtMatrixLayout_t, void*,
                    cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t stream) {
  return work(stream, "kernel") ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

#define DNN EXPORT cudnnStatus_t
EXPORT size_t cudnnGetVersion() { return CUDNN_VERSION; }
EXPORT size_t cudnnGetCudartVersion() { return CUDART_VERSION; }
EXPORT const char* cudnnGetErrorString(cudnnStatus_t) { return "null cuDNN"; }
DNN cudnnCreate(cudnnHandle_t* handle) { return cudnnStatus_t(make(handle)); }
DNN cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  reinterpret_cast<Handle*>(handle)->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}
DNN cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t* made) {
  return cudnnStatus_t(make(made));
}
// One engine, without notes or knobs, that needs no workspace.
DNN cudnnBackendGetAttribute(cudnnBackendDescriptor_t const, cudnnBackendAttributeName_t name,
                             cudnnBackendAttributeType_t type, int64_t requested, int64_t* number, void* elements) {
  bool listed = name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE || name == CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE ||
                name == CUDNN_ATTR_ENGINE_KNOB_INFO;
  if (number) *number = listed ? 0 : 1;
  if (elements && requested && type == CUDNN_TYPE_INT64) memset(elements, 0, sizeof(int64_t));
  return CUDNN_STATUS_SUCCESS;
}
DNN cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t) {
  return cudnnStatus_t(nullgpu_on_handle(handle));
}
DNN cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t,
                                                             const cudnnTensorDescriptor_t,
                                                             const cudnnTensorDescriptor_t,
                                                             const cudnnTensorDescriptor_t,
                                                             const cudnnTensorDescriptor_t,
                                                             const cudnnActivationDescriptor_t, size_t* size) {
  *size = 0;
  return CUDNN_STATUS_SUCCESS;
}
DNN cudnnGetBatchNormalizationBackwardExWorkspaceSize(cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t,
                                                      const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t,
                                                      const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t,
                                                      const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t,
                                                      const cudnnActivationDescriptor_t, size_t* size) {
  *size = 0;
  return CUDNN_STATUS_SUCCESS;
}
DNN cudnnGetBatchNormalizationTrainingExReserveSpaceSize(cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t,
                                                         const cudnnActivationDescriptor_t,
                                                         const cudnnTensorDescriptor_t, size_t* size) {
  *size = 0;
  return CUDNN_STATUS_SUCCESS;
}
