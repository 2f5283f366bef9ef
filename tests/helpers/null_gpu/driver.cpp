// A CUDA driver (libcuda.so.1) for PyTorch's lazy loader, Inductor and Triton.
#include <cuda.h>
#include <dlfcn.h>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define DRIVER EXPORT CUresult

namespace {
char something[8];  // what every context, module and function is
template <typename Pointer>
CUresult hand_out(Pointer* pointer) {
  *pointer = reinterpret_cast<Pointer>(something);
  return CUDA_SUCCESS;
}
template <typename Value>
CUresult give(Value* place, Value value) {
  *place = value;
  return CUDA_SUCCESS;
}
CUresult kernel(CUstream stream) {
  static auto launch = reinterpret_cast<int (*)(void*)>(dlsym(RTLD_DEFAULT, "nullgpu_kernel"));
  return launch ? static_cast<CUresult>(launch(stream)) : CUDA_SUCCESS;
}
}  // namespace

DRIVER cuInit(unsigned) { return CUDA_SUCCESS; }
DRIVER cuDriverGetVersion(int* version) { return give(version, CUDA_VERSION); }
DRIVER cuDeviceGet(CUdevice* device, int number) { return give(device, number); }
DRIVER cuDeviceGetCount(int* number) {
  static auto get = reinterpret_cast<int (*)(int*)>(dlsym(RTLD_DEFAULT, "cudaGetDeviceCount"));
  return get ? static_cast<CUresult>(get(number)) : give(number, 1);
}
DRIVER cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  static auto get = reinterpret_cast<int (*)(int*, int, int)>(dlsym(RTLD_DEFAULT, "cudaDeviceGetAttribute"));
  return get ? static_cast<CUresult>(get(value, attribute, device)) : give(value, 0);
}
DRIVER cuCtxGetCurrent(CUcontext* context) { return hand_out(context); }
DRIVER cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
DRIVER cuCtxGetDevice(CUdevice* device) { return give(device, 0); }
DRIVER cuCtxPushCurrent_v2(CUcontext) { return CUDA_SUCCESS; }
DRIVER cuCtxPopCurrent_v2(CUcontext* context) { return hand_out(context); }
DRIVER cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  return give(active, 1);
}
DRIVER cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return hand_out(context); }
DRIVER cuGetErrorString(CUresult, const char** text) { return give(text, "null driver"); }
DRIVER cuGetErrorName(CUresult, const char** text) { return give(text, "null driver"); }
DRIVER cuModuleLoad(CUmodule* module, const char*) { return hand_out(module); }
DRIVER cuModuleLoadData(CUmodule* module, const void*) { return hand_out(module); }
DRIVER cuModuleLoadDataEx(CUmodule* module, const void*, unsigned, CUjit_option*, void**) { return hand_out(module); }
DRIVER cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
DRIVER cuModuleGetFunction(CUfunction* function, CUmodule, const char*) { return hand_out(function); }
DRIVER cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
  return give(value, attribute == CU_FUNC_ATTRIBUTE_NUM_REGS                ? 32
                     : attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
                                                                            : 0);
}
DRIVER cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
DRIVER cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
DRIVER cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream stream,
                      void**, void**) {
  return kernel(stream);
}
DRIVER cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction, void**, void**) { return kernel(config->hStream); }
DRIVER cuLaunchCooperativeKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                 CUstream stream, void**) {
  return kernel(stream);
}
DRIVER cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) { return give(blocks, 2); }
DRIVER cuOccupancyMaxActiveClusters(int* clusters, CUfunction, const CUlaunchConfig*) { return give(clusters, 8); }
DRIVER cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) return give(static_cast<CUdeviceptr*>(value), address);
  if (attribute == CU_POINTER_ATTRIBUTE_CONTEXT) return hand_out(static_cast<CUcontext*>(value));
  return give(static_cast<int*>(value), static_cast<int>(CU_MEMORYTYPE_DEVICE));
}
