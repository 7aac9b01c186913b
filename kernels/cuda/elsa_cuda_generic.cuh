// The generic kernels: any odd K up to kMaxKernelSize, any head width, any alignment. One element at a time, straight
// from memory; written for being right, not for being fast. They compute what the tiled kernels compute and exchange
// the same intermediate results, so that either kind may stand in for the other.
#pragma once

#include "elsa_cuda_kernel.cuh"

namespace elsa_det::cuda {

constexpr int kGenericRows = 4;
constexpr int kGenericCols = 8;
constexpr int kGenericPixels = kGenericRows * kGenericCols;
constexpr int kGenericLanes = 4;  // threads that share a pixel's softmax
constexpr int kGenericThreads = kGenericPixels * kGenericLanes;

constexpr int generic_shared_bytes(int kernel_size, int arrays) {
  return arrays * kGenericPixels * kernel_size * kernel_size * static_cast<int>(sizeof(float));
}
static_assert(generic_shared_bytes(kMaxKernelSize, 2) <= 48 * 1024, "within what every GPU gives without asking");

__device__ __forceinline__ float max_over_lanes(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
}

__device__ __forceinline__ float sum_over_lanes(float x) {
  x += __shfl_xor_sync(kFullWarp, x, 1);
  return x + __shfl_xor_sync(kFullWarp, x, 2);
}

/// The softmax of the tile's queries to `a` (pixel, tap), and its statistics to `stats` unless that is null. A barrier
/// must follow before a thread reads what it has not written itself.
template <typename T>
__device__ void generic_softmax(float* a, const View<const T>& logits, View<float2> stats, const Tile& tile, int taps) {
  const int lane = static_cast<int>(threadIdx.x) % kGenericLanes;
  const int pixel = static_cast<int>(threadIdx.x) / kGenericLanes;
  const int y = tile.y0 + pixel / kGenericCols;
  const int x = tile.x0 + pixel % kGenericCols;
  const bool valid = inside(tile, y, x);
  const T* const src = logits.at(y, x);
  float* const mine = a + pixel * taps;
  float high = -INFINITY;
  for (int j = lane; j < taps; j += kGenericLanes) {
    mine[j] = valid ? to_float(src[j]) : 0.f;
    high = fmaxf(high, mine[j]);
  }
  high = max_over_lanes(high);
  float sum = 0.f;
  for (int j = lane; j < taps; j += kGenericLanes) {
    mine[j] = fast_exp(mine[j] - high);
    sum += mine[j];
  }
  const float scale = 1.f / sum_over_lanes(sum);
  for (int j = lane; j < taps; j += kGenericLanes) mine[j] *= scale;
  if (stats.base != nullptr && valid && lane == 0) *stats.at(y, x) = make_float2(high, scale);
}

/// The coefficients of dvalue: at key i and offset j the softmax of query i + j at its tap -j.
template <typename T>
__device__ void generic_key_coefficients(float* a, const View<const T>& logits, const View<const float2>& stats,
                                         const Tile& tile, int kernel_size) {
  const int taps = kernel_size * kernel_size;
  for (int i = static_cast<int>(threadIdx.x); i < kGenericPixels * taps; i += kGenericThreads) {
    const int pixel = i / taps;
    const int j = i % taps;
    const int y = tile.y0 + pixel / kGenericCols + j / kernel_size - kernel_size / 2;
    const int x = tile.x0 + pixel % kGenericCols + j % kernel_size - kernel_size / 2;
    float coefficient = 0.f;
    if (inside(tile, y, x)) {
      const float2 stat = *stats.at(y, x);
      coefficient = fast_exp(to_float(logits.at(y, x)[taps - 1 - j]) - stat.x) * stat.y;
    }
    a[i] = coefficient;
  }
}

template <typename T, bool kKeys>
__global__ void __launch_bounds__(kGenericThreads)
    generic_aggregate_kernel(const AggregateParams params, const int kernel_size) {
  const Tiling& t = params.tiling;
  const int head = static_cast<int>(blockIdx.x) % t.heads;
  const Tile tile = locate_tile(t, static_cast<int>(blockIdx.x) / t.heads);
  if (!inside(tile, tile.y0, tile.x0)) return;
  const int taps = kernel_size * kernel_size;
  const int radius = kernel_size / 2;
  float* const a = reinterpret_cast<float*>(shared_memory());
  const View<const T> logits = view<T>(params.logits, t, tile, head * taps);
  if constexpr (kKeys) {
    generic_key_coefficients<T>(a, logits, stats_view(params.stats, t, tile, head), tile, kernel_size);
  } else {
    generic_softmax<T>(a, logits, View<float2>{nullptr, 0, 0}, tile, taps);
  }
  __syncthreads();

  const View<const T> source = view<T>(params.source, t, tile, head * t.head_dim);
  const View<T> target = view<T>(params.target, t, tile, head * t.head_dim);
  const int64_t items = static_cast<int64_t>(kGenericPixels) * t.head_dim;
  for (int64_t i = threadIdx.x; i < items; i += kGenericThreads) {
    const int c = static_cast<int>(i % t.head_dim);
    const int pixel = static_cast<int>(i / t.head_dim);
    const int y = tile.y0 + pixel / kGenericCols;
    const int x = tile.x0 + pixel % kGenericCols;
    if (!inside(tile, y, x)) continue;
    const int64_t ghost = static_cast<int64_t>(head * t.head_dim + c) * taps;
    float sum = 0.f;
    for (int j = 0; j < taps; ++j) {
      const int from_y = y + j / kernel_size - radius;
      const int from_x = x + j % kernel_size - radius;
      if (!inside(tile, from_y, from_x)) continue;
      const int tap = kKeys ? taps - 1 - j : j;
      float weight = a[pixel * taps + j];
      if (params.mul.data != nullptr) weight *= load_as_float(params.mul.data, params.mul.dtype, ghost + tap);
      if (params.add.data != nullptr) weight += load_as_float(params.add.data, params.add.dtype, ghost + tap);
      sum = fmaf(to_float(source.at(from_y, from_x)[c]), weight, sum);
    }
    target.at(y, x)[c] = from_float<T>(sum);
  }
}

template <typename T>
__global__ void __launch_bounds__(kGenericThreads)
    generic_query_backward_kernel(const QueryParams params, const int kernel_size) {
  const Tiling& t = params.tiling;
  const int head = static_cast<int>(blockIdx.x) % t.heads;
  const int slot = static_cast<int>(blockIdx.x) / t.heads;
  const int taps = kernel_size * kernel_size;
  const int radius = kernel_size / 2;
  const int all_channels = t.heads * t.head_dim;
  float* const a = reinterpret_cast<float*>(shared_memory());
  float* const dot = a + kGenericPixels * taps;
  const bool want_ghosts = params.partial_mul != nullptr || params.partial_add != nullptr;

  for (int index = slot; index < t.tiles; index += params.blocks_per_head) {
    const Tile tile = locate_tile(t, index);
    const View<const T> logits = view<T>(params.logits, t, tile, head * taps);
    const View<const T> value = view<T>(params.value, t, tile, head * t.head_dim);
    const View<const T> grad_out = view<T>(params.grad_out, t, tile, head * t.head_dim);
    const View<T> grad_logits = view<T>(params.grad_logits, t, tile, head * taps);
    __syncthreads();  // the tile before is done with
    generic_softmax<T>(a, logits, stats_view(params.stats, t, tile, head), tile, taps);

    for (int i = static_cast<int>(threadIdx.x); i < kGenericPixels * taps; i += kGenericThreads) {
      const int pixel = i / taps;
      const int j = i % taps;
      const int y = tile.y0 + pixel / kGenericCols;
      const int x = tile.x0 + pixel % kGenericCols;
      const int from_y = y + j / kernel_size - radius;
      const int from_x = x + j % kernel_size - radius;
      float sum = 0.f;
      if (inside(tile, y, x) && inside(tile, from_y, from_x)) {
        const T* const grad = grad_out.at(y, x);
        const T* const from = value.at(from_y, from_x);
        for (int c = 0; c < t.head_dim; ++c) {
          float product = to_float(grad[c]) * to_float(from[c]);
          if (params.mul.data != nullptr) {
            const int64_t ghost = static_cast<int64_t>(head * t.head_dim + c) * taps;
            product *= load_as_float(params.mul.data, params.mul.dtype, ghost + j);
          }
          sum += product;
        }
      }
      dot[i] = sum;
    }
    __syncthreads();

    if (want_ghosts) {
      const int64_t items = static_cast<int64_t>(taps) * t.head_dim;
      for (int64_t i = threadIdx.x; i < items; i += kGenericThreads) {
        const int c = static_cast<int>(i % t.head_dim);
        const int j = static_cast<int>(i / t.head_dim);
        float grad_add = 0.f;
        float grad_mul = 0.f;
        for (int pixel = 0; pixel < kGenericPixels; ++pixel) {
          const int y = tile.y0 + pixel / kGenericCols;
          const int x = tile.x0 + pixel % kGenericCols;
          const int from_y = y + j / kernel_size - radius;
          const int from_x = x + j % kernel_size - radius;
          if (!inside(tile, y, x) || !inside(tile, from_y, from_x)) continue;
          const float product = to_float(grad_out.at(y, x)[c]) * to_float(value.at(from_y, from_x)[c]);
          grad_add += product;
          grad_mul = fmaf(product, a[pixel * taps + j], grad_mul);
        }
        const int64_t partial = (static_cast<int64_t>(slot) * taps + j) * all_channels + head * t.head_dim + c;
        const bool first = index == slot;
        if (params.partial_add != nullptr) {
          params.partial_add[partial] = first ? grad_add : params.partial_add[partial] + grad_add;
        }
        if (params.partial_mul != nullptr) {
          params.partial_mul[partial] = first ? grad_mul : params.partial_mul[partial] + grad_mul;
        }
      }
    }

    const int lane = static_cast<int>(threadIdx.x) % kGenericLanes;
    const int pixel = static_cast<int>(threadIdx.x) / kGenericLanes;
    const int y = tile.y0 + pixel / kGenericCols;
    const int x = tile.x0 + pixel % kGenericCols;
    float mean = 0.f;
    for (int j = lane; j < taps; j += kGenericLanes) mean = fmaf(a[pixel * taps + j], dot[pixel * taps + j], mean);
    mean = sum_over_lanes(mean);
    if (inside(tile, y, x)) {
      for (int j = lane; j < taps; j += kGenericLanes) {
        grad_logits.at(y, x)[j] = from_float<T>(a[pixel * taps + j] * (dot[pixel * taps + j] - mean));
      }
    }
  }
}

// ---- Sum of the blocks' shares of the ghost gradients ---------------------------------------------------------------

struct ReduceParams {
  const float* partial[2];  // (slots, taps, channels) each
  GhostGrad target[2];      // (channels, taps)
  int slots, taps, channels;
};

constexpr int kReduceOutputs = 32;
constexpr int kReduceSlices = 16;

/// Block (outputs / 32, which of the two): 32 neighbouring sums, each cut into 16 slices that are then added in order.
__global__ void __launch_bounds__(kReduceOutputs* kReduceSlices) reduce_partials_kernel(const ReduceParams params) {
  __shared__ float slices[kReduceSlices][kReduceOutputs];
  const bool second = blockIdx.y != 0;
  const float* const partial = second ? params.partial[1] : params.partial[0];
  const GhostGrad target = second ? params.target[1] : params.target[0];
  const int outputs = params.taps * params.channels;
  const int output = static_cast<int>(blockIdx.x) * kReduceOutputs + static_cast<int>(threadIdx.x);
  const int slice = static_cast<int>(threadIdx.y);
  float sum = 0.f;
  if (output < outputs) {
    const float* const src = partial + output;
#pragma unroll 8
    for (int s = slice; s < params.slots; s += kReduceSlices) sum += src[static_cast<int64_t>(s) * outputs];
  }
  slices[slice][threadIdx.x] = sum;
  __syncthreads();
  if (slice != 0 || output >= outputs) return;
  for (int s = 1; s < kReduceSlices; ++s) sum += slices[s][threadIdx.x];
  const int channel = output % params.channels;
  const int tap = output / params.channels;
  store_as(target.data, target.dtype, static_cast<int64_t>(channel) * params.taps + tap, sum);
}

}  // namespace elsa_det::cuda
