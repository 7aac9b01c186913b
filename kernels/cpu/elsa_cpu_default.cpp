// Baseline of the target: SSE2 on x86-64, NEON on aarch64.
#define ELSA_ISA default
#define ELSA_VECTOR_BYTES 16
#include "elsa_cpu_kernel.h"
