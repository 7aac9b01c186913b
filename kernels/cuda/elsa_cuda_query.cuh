// Tiled kernel of the query-centred backward: dlogits, the softmax statistics for dvalue, and each block's share of the
// ghost gradients.
#pragma once

#include "elsa_cuda_tiled.cuh"

namespace elsa_det::cuda {

template <typename T, int K, bool kMul>
struct QueryLayout {
  static constexpr int kCoefficientBytes = K * K * kTilePixels * static_cast<int>(sizeof(float));
  static constexpr int kHalo = 0;
  static constexpr int kCentre = kHalo + kHaloBytes<K>;
  static constexpr int kStage = 0;  // of logits and of dlogits: over the values, which are then no longer needed
  static constexpr int kDot = kCentre + kCentreBytes;
  static constexpr int kMulGhost = kDot + kCoefficientBytes;
  static constexpr int kCoefficients = kMulGhost + (kMul ? K * K * kGhostRow<T> * static_cast<int>(sizeof(float)) : 0);
  static constexpr int kBytes = kCoefficients + (kMul ? kCoefficientBytes : 0);
  static constexpr int kWarps = K;  // a warp is a row of taps
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kBlocks = (kMul ? 256 : 512) / kThreads;  // at once: leaves 255 or 128 registers a thread
  static_assert(kStage + kCoefficientBytes <= kDot, "the stage must fit over the values");
};

/// Adds up x[pixel] over the four lanes along the channels; the lane of channel group p is left with pixel p's sum.
__device__ __forceinline__ float reduce_channel_lanes(const float (&x)[kPixels], int channel_lane) {
  const bool odd = (channel_lane & 1) != 0;
  const bool upper = (channel_lane & 2) != 0;
  const float even_or_odd_low = (odd ? x[1] : x[0]) + __shfl_xor_sync(kFullWarp, odd ? x[0] : x[1], 1);
  const float even_or_odd_high = (odd ? x[3] : x[2]) + __shfl_xor_sync(kFullWarp, odd ? x[2] : x[3], 1);
  return (upper ? even_or_odd_high : even_or_odd_low) +
         __shfl_xor_sync(kFullWarp, upper ? even_or_odd_low : even_or_odd_high, 2);
}

/// Adds up x[tap][channel] over the eight lanes that share a channel group (lane bits 2 to 4), halving the channels a
/// lane holds with each step as long as there are any to halve. Leaves x[tap][0]; returns the channel that stands for.
template <int K, int kN>
__device__ __forceinline__ int reduce_pixel_lanes(float (&x)[K][kN], int lane) {
  int channel = 0;
#pragma unroll
  for (int step = 0; step < 3; ++step) {
    const int mask = 4 << step;
    const bool upper = (lane & mask) != 0;
    const int half = kN >> (step + 1);
    if (half > 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int c = 0; c < half; ++c) {
          const float keep = upper ? x[k][c + half] : x[k][c];
          const float send = upper ? x[k][c] : x[k][c + half];
          x[k][c] = keep + __shfl_xor_sync(kFullWarp, send, mask);
        }
      }
      if (upper) channel += half;
    } else {
#pragma unroll
      for (int k = 0; k < K; ++k) x[k][0] += __shfl_xor_sync(kFullWarp, x[k][0], mask);
    }
  }
  return channel;
}

/// Writes this block's share for a chunk, or adds to what the same thread wrote for an earlier tile.
template <typename T, int K>
__device__ __forceinline__ void store_partial(float* partial, float (&x)[K][kVec<T>], int lane, int ky, int channel,
                                              int channels, int all_channels, bool first) {
  const int mine = lane % kChannelLanes * kVec<T> + reduce_pixel_lanes<K, kVec<T>>(x, lane);
  const bool writer = kVec<T> == 8 || (lane & 16) == 0;  // four channels: two lanes hold the same sum
  if (!writer || mine >= channels) return;
#pragma unroll
  for (int kx = 0; kx < K; ++kx) {
    float* const dst = partial + (ky * K + kx) * all_channels + channel + mine;
    *dst = first ? x[kx][0] : *dst + x[kx][0];
  }
}

/// Where pixel `lane` of a strip keeps its dA: turned by 8 a strip, so that a warp's stores hit 32 different banks.
__device__ __forceinline__ int dot_slot(int strip, int lane) { return strip * 32 + ((lane + 8 * strip) & 31); }

template <typename T, int K, bool kMul>
__global__ void __launch_bounds__(QueryLayout<T, K, kMul>::kThreads, QueryLayout<T, K, kMul>::kBlocks)
    query_backward_kernel(const QueryParams params) {
  using Layout = QueryLayout<T, K, kMul>;
  constexpr int kWarps = Layout::kWarps;
  constexpr int kTaps = K * K;
  constexpr int kN = kVec<T>;
  constexpr int kPitch = padded_row(kHaloCols<K>) * kPixelBytes;
  constexpr int kCentrePitch = padded_row(kTileCols) * kPixelBytes;
  const Tiling& t = params.tiling;
  const int head = static_cast<int>(blockIdx.x) % t.heads;
  const int slot = static_cast<int>(blockIdx.x) / t.heads;
  const int all_channels = t.heads * t.head_dim;

  unsigned char* const shared = shared_memory();
  unsigned char* const halo = shared + Layout::kHalo;
  unsigned char* const centre = shared + Layout::kCentre;
  float* const stage = reinterpret_cast<float*>(shared + Layout::kStage);
  float* const dot = reinterpret_cast<float*>(shared + Layout::kDot);
  float* const ghost_mul = reinterpret_cast<float*>(shared + Layout::kMulGhost);
  float* const coefficients = reinterpret_cast<float*>(shared + Layout::kCoefficients);

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int ky = warp;
  const int channel_lane = lane % kChannelLanes;
  const int parity = lane / kChannelLanes % 2;  // even or odd rows of the tile
  const int strip = lane / (kChannelLanes * 2);

#pragma unroll 1
  for (int index = slot; index < t.tiles; index += params.blocks_per_head) {
    const Tile tile = locate_tile(t, index);
    const View<const T> logits = view<T>(params.logits, t, tile, head * kTaps);
    const View<float2> stats = stats_view(params.stats, t, tile, head);

    if constexpr (kMul) {
#pragma unroll 1
      for (int s = warp; s < kStrips; s += K) {
        strip_softmax<T, K>(coefficients + s * (kTaps * kStripPixels), logits, tile, s, lane);
      }
    }

#pragma unroll 1
    for (int chunk = 0; chunk < t.head_dim; chunk += kChunk<T>) {
      const int channel = head * t.head_dim + chunk;
      const int channels = t.head_dim - chunk;
      __syncthreads();  // the tile, or the chunk, before is done with
      start_tile_copy<T, kHaloRows<K>, kHaloCols<K>, kWarps>(halo, view<T>(params.value, t, tile, channel), tile,
                                                               tile.y0 - K / 2, tile.x0 - K / 2, channels, warp, lane);
      start_tile_copy<T, kTileRows, kTileCols, kWarps>(centre, view<T>(params.grad_out, t, tile, channel), tile,
                                                         tile.y0, tile.x0, channels, warp, lane);
      if constexpr (kMul) load_ghost<T, K, kWarps, false>(ghost_mul, params.mul, channel, channels, warp, lane);
      __pipeline_wait_prior(0);
      __syncthreads();

      float grad_add[K][kN] = {};
      float grad_mul[kMul ? K : 1][kN] = {};
#pragma unroll 1
      for (int i = 0; i < kTileRows / 2; ++i) {
        const int y = 2 * i + parity;
        const unsigned char* const row = halo + (y + ky) * kPitch +
                                         (strip * kPixels * kChannelLanes + channel_lane) * kVecBytes;
        const unsigned char* const grad_row = centre + y * kCentrePitch +
                                              (strip * kPixels * kChannelLanes + channel_lane) * kVecBytes;
        float* const dot_row = dot + ky * K * kTilePixels + dot_slot(strip, y * kPixels + channel_lane);
        float grad[kPixels][kN];
#pragma unroll
        for (int p = 0; p < kPixels; ++p) {
          load_vector(reinterpret_cast<const T*>(grad_row + p * kPixelBytes), grad[p]);
        }
        // A value meets pixel p at tap column x - p. Of the taps, four columns are under way at a time.
        float part[kPixels][kPixels], a[kMul ? kPixels : 1][kPixels], mul[kMul ? kPixels : 1][kN];
#pragma unroll
        for (int x = 0; x < K + kPixels - 1; ++x) {
          float value[kN];
          load_vector(reinterpret_cast<const T*>(row + x * kPixelBytes), value);
          if constexpr (kMul) {
            if (x < K) {
              const int j = ky * K + x;
              load_vector(coefficients + (strip * kTaps + j) * kStripPixels + y * kPixels, a[x % kPixels]);
              load_vector(ghost_mul + j * kGhostRow<T> + channel_lane * kN, mul[x % kPixels]);
            }
          }
#pragma unroll
          for (int p = 0; p < kPixels; ++p) {
            const int kx = x - p;
            if (kx < 0 || kx >= K) continue;
            float sum = 0.f;
#pragma unroll
            for (int c = 0; c < kN; ++c) {
              if constexpr (kMul) {
                const float product = grad[p][c] * value[c];
                sum = fmaf(product, mul[kx % kPixels][c], sum);
                grad_add[kx][c] += product;
                grad_mul[kx][c] = fmaf(product, a[kx % kPixels][p], grad_mul[kx][c]);
              } else {
                sum = fmaf(grad[p][c], value[c], sum);
                grad_add[kx][c] = fmaf(grad[p][c], value[c], grad_add[kx][c]);
              }
            }
            part[kx % kPixels][p] = sum;
          }
          const int done = x - (kPixels - 1);
          if (done >= 0) {
            const float whole = reduce_channel_lanes(part[done % kPixels], channel_lane);
            float* const dst = dot_row + done * kTilePixels;
            *dst = chunk == 0 ? whole : *dst + whole;
          }
        }
      }

      const bool first = index == slot;
      const int64_t partial = static_cast<int64_t>(slot) * kTaps * all_channels;
      if (params.partial_add != nullptr) {
        store_partial<T, K>(params.partial_add + partial, grad_add, lane, ky, channel, channels, all_channels, first);
      }
      if constexpr (kMul) {
        if (params.partial_mul != nullptr) {
          store_partial<T, K>(params.partial_mul + partial, grad_mul, lane, ky, channel, channels, all_channels, first);
        }
      }
    }
    __syncthreads();  // dA is complete, and the values give way to the stage

#pragma unroll 1
    for (int s = warp; s < kStrips; s += K) {
      float* const strip_stage = stage + s * (kTaps * kStripPixels);
      const int x0 = tile.x0 + s * kPixels;
      stage_logits<T, K>(strip_stage, logits, tile, x0, lane);
      __syncwarp();
      float a[kTaps];
      const float2 stat = softmax<K>(strip_stage + lane * kTaps, a);
      const int y = tile.y0 + lane / kPixels;
      const int x = x0 + lane % kPixels;
      if (inside(tile, y, x)) *stats.at(y, x) = stat;

      const float* const strip_dot = dot + dot_slot(s, lane);
      float mean = 0.f;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) mean = fmaf(a[j], strip_dot[j * kTilePixels], mean);
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        strip_stage[lane * kTaps + j] = a[j] * (strip_dot[j * kTilePixels] - mean);
      }
      __syncwarp();
      unstage_logits<T, K>(strip_stage, view<T>(params.grad_logits, t, tile, head * kTaps), tile, x0, lane);
    }
  }
}

}  // namespace elsa_det::cuda
