// Runs a CUDA kernel with nothing of CUDA at build time and nothing of NVIDIA
// in the image: all that it opens is what the device plugin gave.
//
//   cuda_probe          adds two vectors, says how many GPUs are seen
//   cuda_probe fault    writes where it may not (the driver reports XID 31 or 13)
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// PTX, so that the driver's own compiler is needed and used too.
static const char *PTX =
    ".version 6.0\n.target sm_60\n.address_size 64\n"
    ".visible .entry add(.param .u64 a, .param .u64 b, .param .u64 c) {\n"
    "  .reg .u64 %p<4>; .reg .u32 %i; .reg .u64 %o; .reg .f32 %f<3>;\n"
    "  ld.param.u64 %p0, [a]; ld.param.u64 %p1, [b]; ld.param.u64 %p2, [c];\n"
    "  mov.u32 %i, %tid.x; mul.wide.u32 %o, %i, 4;\n"
    "  add.u64 %p0, %p0, %o; add.u64 %p1, %p1, %o; add.u64 %p2, %p2, %o;\n"
    "  ld.global.f32 %f0, [%p0]; ld.global.f32 %f1, [%p1];\n"
    "  add.f32 %f2, %f0, %f1; st.global.f32 [%p2], %f2; ret;\n}\n";

typedef int (*fn)();

static void *symbol(void *library, const char *name) {
  void *found = dlsym(library, name);
  if (!found) { printf("FAIL no symbol %s\n", name); exit(1); }
  return found;
}

static void check(const char *what, int result) {
  if (result) { printf("FAIL %s: %d\n", what, result); exit(1); }
}

static void *open_library(const char *soname) {
  void *library = dlopen(soname, RTLD_NOW | RTLD_GLOBAL);
  if (!library) { printf("FAIL dlopen %s: %s\n", soname, dlerror()); exit(1); }
  printf("ok   dlopen %s\n", soname);
  return library;
}

static unsigned nvml_count(void) {
  void *nvml = open_library("libnvidia-ml.so.1");
  unsigned count = 0;
  check("nvmlInit_v2", ((fn)symbol(nvml, "nvmlInit_v2"))());
  check("nvmlDeviceGetCount_v2", ((int (*)(unsigned *))symbol(nvml, "nvmlDeviceGetCount_v2"))(&count));
  return count;
}

int main(int argc, char **argv) {
  enum { N = 256 };
  int fault = argc > 1 && !strcmp(argv[1], "fault");
  printf("ok   NVML sees %u GPU(s)\n", nvml_count());
  void *cuda = open_library("libcuda.so.1");
  int count = 0, device = 0;
  char name[96] = "";
  void *context, *module, *function;
  unsigned long long a, b, c;
  check("cuInit", ((int (*)(unsigned))symbol(cuda, "cuInit"))(0));
  check("cuDeviceGetCount", ((int (*)(int *))symbol(cuda, "cuDeviceGetCount"))(&count));
  check("cuDeviceGet", ((int (*)(int *, int))symbol(cuda, "cuDeviceGet"))(&device, 0));
  check("cuDeviceGetName", ((int (*)(char *, int, int))symbol(cuda, "cuDeviceGetName"))(name, 96, device));
  printf("ok   CUDA sees %d GPU(s), the first is %s\n", count, name);
  check("cuCtxCreate", ((int (*)(void **, unsigned, int))symbol(cuda, "cuCtxCreate_v2"))(&context, 0, device));
  check("cuModuleLoadData", ((int (*)(void **, const char *))symbol(cuda, "cuModuleLoadData"))(&module, PTX));
  check("cuModuleGetFunction", ((int (*)(void **, void *, const char *))symbol(cuda, "cuModuleGetFunction"))(&function, module, "add"));
  int (*alloc)(unsigned long long *, size_t) = symbol(cuda, "cuMemAlloc_v2");
  check("cuMemAlloc", alloc(&a, N * 4) || alloc(&b, N * 4) || alloc(&c, N * 4));
  float x[N], y[N], z[N];
  for (int i = 0; i < N; i++) { x[i] = i; y[i] = 2 * i; }
  int (*to_gpu)(unsigned long long, const void *, size_t) = symbol(cuda, "cuMemcpyHtoD_v2");
  check("cuMemcpyHtoD", to_gpu(a, x, sizeof x) || to_gpu(b, y, sizeof y));
  if (fault) c = 0xdead0000000ull;
  void *arguments[] = {&a, &b, &c};
  int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **) =
      symbol(cuda, "cuLaunchKernel");
  check("cuLaunchKernel", launch(function, 1, 1, 1, N, 1, 1, 0, NULL, arguments, NULL));
  int result = ((fn)symbol(cuda, "cuCtxSynchronize"))();
  if (fault) { printf("%s the kernel faulted as it should: CUDA error %d\n", result ? "ok  " : "FAIL", result); return !result; }
  check("cuCtxSynchronize", result);
  check("cuMemcpyDtoH", ((int (*)(void *, unsigned long long, size_t))symbol(cuda, "cuMemcpyDtoH_v2"))(z, c, sizeof z));
  for (int i = 0; i < N; i++) if (z[i] != 3.0f * i) { printf("FAIL %d: %f\n", i, z[i]); return 1; }
  printf("ok   a CUDA kernel ran and its result is right\n");
  return 0;
}
