// What the dispatcher (elsa.cpp) and the per-ISA translation units share. Plain data only: the ISA units include
// neither ATen nor the standard containers, so that no inline function compiled for a newer ISA can leak into the rest.
#pragma once

#include <cstddef>
#include <cstdint>

namespace elsa_det::cpu {

enum class Dtype { kFloat, kDouble, kBFloat16, kHalf };

// A (B, channels, H, W) tensor, strides in elements.
struct Map {
  void* data = nullptr;
  int64_t sb = 0, sc = 0, sh = 0, sw = 0;
};

// Head dims are padded to `padded_dim` (a multiple of the vector width) in everything that is packed.
struct Problem {
  Dtype dtype = Dtype::kFloat;
  int64_t batch = 0, heads = 0, head_dim = 0, padded_dim = 0, height = 0, width = 0, kernel_size = 0, dilation = 1;

  Map value, logits;
  const void* mul = nullptr;  // (heads, K², padded_dim) in the accumulation type; null: all ones
  const void* add = nullptr;  // likewise; null: zeros

  Map out;  // forward only

  Map grad_out, grad_value, grad_logits;  // backward only
  void* grad_mul = nullptr;               // (partials, heads, K², padded_dim), accumulation type; null: not wanted
  void* grad_add = nullptr;

  // The plan. A dilated problem falls apart into dilation² dense ones, one for each (row, column) residue; each of them
  // is cut into column tiles and row chunks. A unit of work is one head of one such piece.
  int64_t tile_width = 0, tiles = 0, chunk_rows = 0, chunks = 0, units = 0;
  // Ghost gradients are summed over `partial_rows` rows at a time, whatever the chunk, so that the result does not
  // depend on the number of threads. chunk_rows is a multiple of partial_rows.
  int64_t partial_rows = 0, partial_chunks = 0, partials = 0;
};

constexpr int64_t kMaxTile = 128;  // upper limit of tile_width

struct Kernels {
  const char* name;
  int64_t lanes_float, lanes_double;
  // Bytes of scratch a unit needs; the pointer passed to a unit is aligned to 64 bytes.
  size_t (*forward_scratch)(const Problem&);
  size_t (*backward_scratch)(const Problem&);
  void (*forward_unit)(const Problem&, int64_t unit, void* scratch);
  void (*backward_unit)(const Problem&, int64_t unit, void* scratch);
};

extern const Kernels kernels_default;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace elsa_det::cpu
