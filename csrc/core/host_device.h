// Macros that let a functor be written once and run on the host and on a CUDA device.
#pragma once

// Always inlined, so that no out-of-line copy is shared by translation units built with different
// instruction-set flags (the linker would keep one of them for all).
#ifdef __CUDACC__
#define SORA_HD __host__ __device__ __forceinline__
#define SORA_UNROLL _Pragma("unroll")  // an array of the kernel's arguments is then never indexed at run time
#else
#define SORA_HD inline __attribute__((always_inline))
#define SORA_UNROLL
#endif
