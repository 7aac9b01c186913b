// Tiled kernel of the forward and of dvalue: weighted sums over neighbourhoods.
#pragma once

#include "elsa_cuda_tiled.cuh"

namespace elsa_det::cuda {

/// The whole block, for dvalue: coefficient (j, key) is the softmax of query key + j at its tap -j. Logits are read in
/// runs of K taps of one query; `stats` is the tile of softmax statistics with its halo, which makes the coefficients
/// of queries outside the image zero, whatever is read in their place. Every entry is written once: rows of keys and
/// tap columns lie on the lanes (so that a warp's stores are spread over the banks), query columns go round the warps.
template <typename T, int K>
__device__ __forceinline__ void gather_key_coefficients(float* coefficients, const float2* stats,
                                                        const View<const T>& logits, const Tile& tile, int warp,
                                                        int lane) {
  constexpr int kRadius = K / 2;
  constexpr int kTapLanes = K <= 4 ? 4 : 8;
  constexpr int kRowsAtOnce = 32 / kTapLanes;
  constexpr int kRowGroups = kTileRows / kRowsAtOnce;
  constexpr int kStep = kStrips / kRowGroups;
  const int y = warp % kRowGroups * kRowsAtOnce + lane / kTapLanes;
  const int tap = lane % kTapLanes;
  const T* rows[K];
#pragma unroll
  for (int jy = 0; jy < K; ++jy) {  // the query lies in halo row y + jy, its tap in row K - 1 - jy
    const int row = min(max(tile.y0 - kRadius + y + jy, 0), tile.height - 1);
    rows[jy] = logits.at(row, tile.x0) + (K - 1 - jy) * K + min(tap, K - 1);
  }
#pragma unroll 2
  for (int query = warp / kRowGroups; query < kHaloCols<K>; query += kStep) {  // its column, halo included
    const int key = query - (K - 1 - tap);
    const bool used = tap < K && key >= 0 && key < kTileCols;
    // The host made sure that 32 bits suffice for offsets within a tile's row.
    const int x_offset = min(max(tile.x0 - kRadius + query, 0), tile.width - 1) - tile.x0;
    const int column = x_offset * static_cast<int>(logits.col);
    const float2* const stat_column = stats + y * kHaloCols<K> + query;
    float* const to = coefficients + (used ? key / kPixels * (K * K * kStripPixels) + (K - 1 - tap) * kStripPixels +
                                                 y * kPixels + key % kPixels
                                           : 0);
    T x[K];
#pragma unroll
    for (int jy = 0; jy < K; ++jy) x[jy] = rows[jy][column];
#pragma unroll
    for (int jy = 0; jy < K; ++jy) {
      const float2 stat = stat_column[jy * kHaloCols<K>];
      const float coefficient = fast_exp(to_float(x[jy]) - stat.x) * stat.y;
      if (used) to[jy * K * kStripPixels] = coefficient;
    }
  }
}

/// The softmax statistics of the tile's halo to shared memory; outside the image such that every exponential is zero.
template <int K, int kThreads>
__device__ __forceinline__ void load_stats(float2* shared, const View<const float2>& stats, const Tile& tile) {
  for (int i = static_cast<int>(threadIdx.x); i < kHaloRows<K> * kHaloCols<K>; i += kThreads) {
    const int y = tile.y0 - K / 2 + i / kHaloCols<K>;
    const int x = tile.x0 - K / 2 + i % kHaloCols<K>;
    shared[i] = inside(tile, y, x) ? *stats.at(y, x) : make_float2(INFINITY, 0.f);
  }
}

template <typename T, int K, bool kMul, bool kKeys>
struct AggregateLayout {
  static constexpr int kHalo = 0;
  static constexpr int kCoefficients = kHalo + kHaloBytes<K>;
  static constexpr int kAdd = kCoefficients + K * K * kTilePixels * static_cast<int>(sizeof(float));
  static constexpr int kGhostBytes = K * K * kGhostRow<T> * static_cast<int>(sizeof(float));
  static constexpr int kMulGhost = kAdd + kGhostBytes;
  static constexpr int kStats = kMulGhost + (kMul ? kGhostBytes : 0);
  static constexpr int kBytes =
      kStats + (kKeys ? kHaloRows<K> * kHaloCols<K> * static_cast<int>(sizeof(float2)) : 0);
  static constexpr int kWarps = kStrips;
  static constexpr int kThreads = kWarps * 32;
};

template <typename T, int K, bool kMul, bool kKeys>
__global__ void __launch_bounds__(AggregateLayout<T, K, kMul, kKeys>::kThreads, 4)
    aggregate_kernel(const AggregateParams params) {
  using Layout = AggregateLayout<T, K, kMul, kKeys>;
  constexpr int kWarps = Layout::kWarps;
  constexpr int kTaps = K * K;
  constexpr int kN = kVec<T>;
  constexpr int kPitch = padded_row(kHaloCols<K>) * kPixelBytes;
  const Tiling& t = params.tiling;
  const int head = static_cast<int>(blockIdx.x) % t.heads;
  const Tile tile = locate_tile(t, static_cast<int>(blockIdx.x) / t.heads);
  if (!inside(tile, tile.y0, tile.x0)) return;  // a phase that is shorter than the longest

  unsigned char* const shared = shared_memory();
  unsigned char* const halo = shared + Layout::kHalo;
  float* const coefficients = reinterpret_cast<float*>(shared + Layout::kCoefficients);
  float* const ghost_add = reinterpret_cast<float*>(shared + Layout::kAdd);
  float* const ghost_mul = reinterpret_cast<float*>(shared + Layout::kMulGhost);

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int strip = warp;
  const int channel_lane = lane % kChannelLanes;
  const int y = lane / kChannelLanes;
  float* const strip_coefficients = coefficients + strip * (kTaps * kStripPixels);
  const unsigned char* const first_value =
      halo + y * kPitch + (strip * kPixels * kChannelLanes + channel_lane) * kVecBytes;

#pragma unroll 1
  for (int chunk = 0; chunk < t.head_dim; chunk += kChunk<T>) {
    const int channel = head * t.head_dim + chunk;
    const int channels = t.head_dim - chunk;
    if (chunk > 0) __syncthreads();
    start_tile_copy<T, kHaloRows<K>, kHaloCols<K>, kWarps>(halo, view<T>(params.source, t, tile, channel), tile,
                                                             tile.y0 - K / 2, tile.x0 - K / 2, channels, warp, lane);
    load_ghost<T, K, kWarps, kKeys>(ghost_add, params.add, channel, channels, warp, lane);
    if constexpr (kMul) load_ghost<T, K, kWarps, kKeys>(ghost_mul, params.mul, channel, channels, warp, lane);
    if (chunk == 0) {
      const View<const T> logits = view<T>(params.logits, t, tile, head * kTaps);
      if constexpr (kKeys) {
        float2* const stats = reinterpret_cast<float2*>(shared + Layout::kStats);
        load_stats<K, Layout::kThreads>(stats, stats_view(params.stats, t, tile, head), tile);
        __syncthreads();
        gather_key_coefficients<T, K>(coefficients, stats, logits, tile, warp, lane);
      } else {
        strip_softmax<T, K>(strip_coefficients, logits, tile, strip, lane);
      }
    }
    __pipeline_wait_prior(0);
    __syncthreads();

    float sum[kPixels][kN] = {};
#pragma unroll 1
    for (int ky = 0; ky < K; ++ky) {
      const unsigned char* const row = first_value + ky * kPitch;
      const float* const a_row = strip_coefficients + ky * K * kStripPixels + y * kPixels;
      const int ghost_row = ky * K * kGhostRow<T> + channel_lane * kN;
      float window[kPixels][kN];
#pragma unroll
      for (int p = 0; p < kPixels - 1; ++p) load_vector(reinterpret_cast<const T*>(row + p * kPixelBytes), window[p]);
#pragma unroll
      for (int kx = 0; kx < K; ++kx) {
        load_vector(reinterpret_cast<const T*>(row + (kx + kPixels - 1) * kPixelBytes),
                    window[(kx + kPixels - 1) % kPixels]);
        float a[kPixels], add[kN], mul[kN];
        load_vector(a_row + kx * kStripPixels, a);
        load_vector(ghost_add + ghost_row + kx * kGhostRow<T>, add);
        if constexpr (kMul) load_vector(ghost_mul + ghost_row + kx * kGhostRow<T>, mul);
#pragma unroll
        for (int p = 0; p < kPixels; ++p) {
#pragma unroll
          for (int c = 0; c < kN; ++c) {
            const float weight = kMul ? fmaf(a[p], mul[c], add[c]) : a[p] + add[c];
            sum[p][c] = fmaf(window[(kx + p) % kPixels][c], weight, sum[p][c]);
          }
        }
      }
    }

    const View<T> target = view<T>(params.target, t, tile, channel + channel_lane * kN);
    if (channel_lane * kN < channels) {
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        const int row = tile.y0 + y;
        const int col = tile.x0 + strip * kPixels + p;
        if (inside(tile, row, col)) store_vector(target.at(row, col), sum[p]);
      }
    }
  }
}

}  // namespace elsa_det::cuda
