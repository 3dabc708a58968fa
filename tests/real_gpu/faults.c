// Makes an application's fault on a GPU, on purpose, in a process of its own.
// Needs nothing of CUDA at build time: cc faults.c -o faults -ldl
//
//   faults address       writes where no memory is mapped   (the driver reports XID 31)
//   faults alignment     writes a word to an odd address     (XID 13)
//   faults shared        writes past the shared memory       (XID 13)
//   faults trap          gives up by itself                  (XID 13)
//
// Prints CUDA's error. Exit code 0: it faulted; 1: it did not, or could not try.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KERNEL(body) \
  ".version 6.0\n.target sm_60\n.address_size 64\n" \
  ".visible .entry fault(.param .u64 place) {\n" \
  "  .reg .u64 %p; .reg .u32 %s, %v; .shared .align 4 .b32 own;\n" \
  "  ld.param.u64 %p, [place]; mov.u32 %v, 1;\n" body "  ret;\n}\n"

static const struct { const char *name, *ptx; unsigned long long offset; int mapped; } FAULTS[] = {
    {"address", KERNEL("  st.global.u32 [%p], %v;\n"), 0xdead0000000ull, 0},
    {"alignment", KERNEL("  st.global.u32 [%p], %v;\n"), 1, 1},
    {"shared", KERNEL("  mov.u32 %s, own; add.u32 %s, %s, 0x800000; st.shared.u32 [%s], %v;\n"), 0, 1},
    {"trap", KERNEL("  trap;\n"), 0, 1},
};

static void *cuda;

static void *symbol(const char *name) {
  void *found = dlsym(cuda, name);
  if (!found) { printf("FAIL no symbol %s\n", name); exit(1); }
  return found;
}

static void check(const char *what, int result) {
  if (result) { printf("FAIL %s: %d\n", what, result); exit(1); }
}

static void *first_context(void) {
  int device = 0;
  void *context;
  check("cuInit", ((int (*)(unsigned))symbol("cuInit"))(0));
  check("cuDeviceGet", ((int (*)(int *, int))symbol("cuDeviceGet"))(&device, 0));
  check("cuCtxCreate", ((int (*)(void **, unsigned, int))symbol("cuCtxCreate_v2"))(&context, 0, device));
  return context;
}

static void *kernel(const char *ptx) {
  void *module, *function;
  check("cuModuleLoadData", ((int (*)(void **, const char *))symbol("cuModuleLoadData"))(&module, ptx));
  check("cuModuleGetFunction", ((int (*)(void **, void *, const char *))symbol("cuModuleGetFunction"))(&function, module, "fault"));
  return function;
}

static int launch(void *function, unsigned long long place) {
  void *arguments[] = {&place};
  int (*start)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **) =
      symbol("cuLaunchKernel");
  check("cuLaunchKernel", start(function, 1, 1, 1, 1, 1, 1, 0, NULL, arguments, NULL));
  return ((int (*)(void))symbol("cuCtxSynchronize"))();
}

int main(int argc, char **argv) {
  const size_t count = sizeof FAULTS / sizeof *FAULTS;
  size_t which = 0;
  while (which < count && (argc < 2 || strcmp(argv[1], FAULTS[which].name))) which++;
  if (which == count) { printf("FAIL which fault: address, alignment, shared or trap\n"); return 1; }
  cuda = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (!cuda) { printf("FAIL dlopen: %s\n", dlerror()); return 1; }
  first_context();
  void *function = kernel(FAULTS[which].ptx);
  unsigned long long place = 0;
  if (FAULTS[which].mapped)
    check("cuMemAlloc", ((int (*)(unsigned long long *, size_t))symbol("cuMemAlloc_v2"))(&place, 4096));
  int result = launch(function, place + FAULTS[which].offset);
  printf("%s %s: CUDA error %d\n", result ? "ok  " : "FAIL", FAULTS[which].name, result);
  return !result;
}
