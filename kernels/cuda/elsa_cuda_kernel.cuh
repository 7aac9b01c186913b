// Building blocks of the CUDA kernels: number formats, where a tile lies, and the pieces of a tile's work that more
// than one kernel needs. The kernels are in elsa_cuda_aggregate.cuh, elsa_cuda_query.cuh and elsa_cuda_generic.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>

#include "elsa_cuda.h"

namespace elsa_det::cuda {

// ---- Number formats -------------------------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

/// Ghost tensors keep a dtype of their own (parameters often stay float32); they are read rarely, so a switch will do.
__device__ __forceinline__ float load_as_float(const void* data, Dtype dtype, int64_t index) {
  switch (dtype) {
    case Dtype::kHalf: return to_float(static_cast<const __half*>(data)[index]);
    case Dtype::kBFloat16: return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
    default: return static_cast<const float*>(data)[index];
  }
}

__device__ __forceinline__ void store_as(void* data, Dtype dtype, int64_t index, float x) {
  switch (dtype) {
    case Dtype::kHalf: static_cast<__half*>(data)[index] = from_float<__half>(x); break;
    case Dtype::kBFloat16: static_cast<__nv_bfloat16*>(data)[index] = from_float<__nv_bfloat16>(x); break;
    default: static_cast<float*>(data)[index] = x;
  }
}

/// exp(x) to about 2 ulp; results below 1e-38 are flushed to zero.
__device__ __forceinline__ float fast_exp(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
#else
  return expf(x);
#endif
}

/// 16 bytes of channels: 4 float32 or 8 half-precision numbers, unpacked to and packed from float32.
constexpr int kVecBytes = 16;
template <typename T>
constexpr int kVec = kVecBytes / static_cast<int>(sizeof(T));

__device__ __forceinline__ void load_vector(const float* src, float (&x)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(src);
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

__device__ __forceinline__ void load_vector(const float* src, float (&x)[8]) {
  const float4 v = *reinterpret_cast<const float4*>(src);
  const float4 w = *reinterpret_cast<const float4*>(src + 4);
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  x[4] = w.x, x[5] = w.y, x[6] = w.z, x[7] = w.w;
}

__device__ __forceinline__ void unpack(unsigned int bits, const __nv_bfloat16*, float& lo, float& hi) {
  lo = __uint_as_float(bits << 16);  // a bfloat16 is the upper half of a float32
  hi = __uint_as_float(bits & 0xffff0000u);
}

__device__ __forceinline__ void unpack(unsigned int bits, const __half*, float& lo, float& hi) {
  lo = __half2float(__ushort_as_half(static_cast<unsigned short>(bits & 0xffffu)));
  hi = __half2float(__ushort_as_half(static_cast<unsigned short>(bits >> 16)));
}

template <typename T>
__device__ __forceinline__ void load_vector(const T* src, float (&x)[8]) {
  const uint4 v = *reinterpret_cast<const uint4*>(src);
  unpack(v.x, src, x[0], x[1]);
  unpack(v.y, src, x[2], x[3]);
  unpack(v.z, src, x[4], x[5]);
  unpack(v.w, src, x[6], x[7]);
}

__device__ __forceinline__ unsigned int pack(float lo, float hi, const __half*) {
  return __half_as_ushort(__float2half_rn(lo)) |
         (static_cast<unsigned int>(__half_as_ushort(__float2half_rn(hi))) << 16);
}

__device__ __forceinline__ unsigned int pack(float lo, float hi, const __nv_bfloat16*) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(lo)) |
         (static_cast<unsigned int>(__bfloat16_as_ushort(__float2bfloat16_rn(hi))) << 16);
}

__device__ __forceinline__ void store_vector(float* dst, const float (&x)[4]) {
  *reinterpret_cast<float4*>(dst) = make_float4(x[0], x[1], x[2], x[3]);
}

template <typename T>
__device__ __forceinline__ void store_vector(T* dst, const float (&x)[8]) {
  *reinterpret_cast<uint4*>(dst) = make_uint4(pack(x[0], x[1], dst), pack(x[2], x[3], dst), pack(x[4], x[5], dst),
                                              pack(x[6], x[7], dst));
}

// ---- Where a tile lies ----------------------------------------------------------------------------------------------

/// How the image is cut into tiles. A dilation of d splits it into d x d interleaved sub-images, one per phase, inside
/// which every neighbourhood is dense: pixel (y, x) of a sub-image is pixel (y d + phase_y, x d + phase_x) of the
/// image. All coordinates in the kernels are those of the sub-image.
struct Tiling {
  int heads, head_dim, height, width, dilation;
  int phases_y, phases_x, tiles_y, tiles_x;
  int tile_height, tile_width;
  int tiles;  // over batch, phases and the plane
};

struct Tile {
  int batch, phase_y, phase_x;
  int y0, x0;         // first pixel
  int height, width;  // of the sub-image
};

__device__ __forceinline__ Tile locate_tile(const Tiling& t, int index) {
  Tile tile;
  tile.x0 = index % t.tiles_x * t.tile_width;
  index /= t.tiles_x;
  tile.y0 = index % t.tiles_y * t.tile_height;
  index /= t.tiles_y;
  tile.phase_x = index % t.phases_x;
  index /= t.phases_x;
  tile.phase_y = index % t.phases_y;
  tile.batch = index / t.phases_y;
  tile.height = (t.height - tile.phase_y - 1) / t.dilation + 1;  // phase < height, so at least 1
  tile.width = (t.width - tile.phase_x - 1) / t.dilation + 1;
  return tile;
}

/// One sub-image of a map, starting at some channel. 64-bit arithmetic once per pixel, never per tap.
template <typename T>
struct View {
  T* base;
  int64_t row, col;

  __device__ __forceinline__ T* at(int y, int x) const { return base + y * row + x * col; }
};

template <typename T>
__device__ __forceinline__ View<const T> view(const ConstMap& map, const Tiling& t, const Tile& tile, int channel) {
  return {static_cast<const T*>(map.data) + tile.batch * map.batch + tile.phase_y * map.row + tile.phase_x * map.col +
              channel,
          map.row * t.dilation, map.col * t.dilation};
}

template <typename T>
__device__ __forceinline__ View<T> view(const Map& map, const Tiling& t, const Tile& tile, int channel) {
  return {static_cast<T*>(map.data) + tile.batch * map.batch + tile.phase_y * map.row + tile.phase_x * map.col +
              channel,
          map.row * t.dilation, map.col * t.dilation};
}

/// The softmax of one query is exp(logit - x) * y: kept for the key-centred kernel, one pair a (batch, head, pixel).
__device__ __forceinline__ View<const float2> stats_view(const float2* stats, const Tiling& t, const Tile& tile,
                                                         int head) {
  const int64_t plane = static_cast<int64_t>(tile.batch) * t.heads + head;
  return {stats + (plane * t.height + tile.phase_y) * t.width + tile.phase_x,
          static_cast<int64_t>(t.width) * t.dilation, t.dilation};
}

__device__ __forceinline__ View<float2> stats_view(float2* stats, const Tiling& t, const Tile& tile, int head) {
  const View<const float2> v = stats_view(static_cast<const float2*>(stats), t, tile, head);
  return {const_cast<float2*>(v.base), v.row, v.col};
}

__device__ __forceinline__ bool inside(const Tile& tile, int y, int x) {
  return static_cast<unsigned int>(y) < static_cast<unsigned int>(tile.height) &&
         static_cast<unsigned int>(x) < static_cast<unsigned int>(tile.width);
}

// ---- Kernel parameters ----------------------------------------------------------------------------------------------

/// target[i] = sum over j of source[i + j] * (mul[j] * coefficient[j, i] + add[j]), twice used:
/// forward (source = value, coefficient = softmax at query i), and dvalue (source = grad_out, offsets mirrored:
/// ghosts at -j, coefficient = softmax of query i + j at its tap -j).
struct AggregateParams {
  Tiling tiling;
  ConstMap source, logits;
  const float2* stats;  // for dvalue only
  Ghost mul, add;
  Map target;
};

struct QueryParams {
  Tiling tiling;
  ConstMap grad_out, value, logits;
  Ghost mul;
  Map grad_logits;
  float2* stats;
  float *partial_mul, *partial_add;  // (blocks of one head, K * K, channels) each, or null
  int blocks_per_head;
};

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ uint4 elsa_shared[];
  return reinterpret_cast<unsigned char*>(elsa_shared);
}

constexpr unsigned int kFullWarp = 0xffffffffu;

}  // namespace elsa_det::cuda
