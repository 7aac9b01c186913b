#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prfchw"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prfchw")
#endif
#define ELSA_ISA avx512
#define ELSA_VECTOR_BYTES 64
#include "elsa_cpu_kernel.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
