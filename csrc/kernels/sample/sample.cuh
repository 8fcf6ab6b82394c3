// One token per row: argmax of the logits, or of (logit / temperature + Gumbel noise) among the
// tokens that top-k, top-p and min-p leave
//
// A cluster of kSampleCluster CTAs holds a row in shared memory, so everything after one pass over
// memory is a pass over shared memory and one reduction over the cluster (tile/cluster.cuh): no
// sort, no workspace, one launch. Greedy rows stop after two reductions.
//
//   values    logit - largest logit; NaN becomes -inf; +inf is the largest
//   distance  (largest - logit) / temperature >= 0 as bits of a float, which order as the floats
//             do: 0 is the likeliest token, kAbsent no token at all
//   Cut       which distances are kept; found by bisection on the bits, with exact counts
//
// The noise of a token depends on seed, counter and token only, and sums have a fixed order: the
// same row gives the same token in any batch. See docs/kernels/sample.md.
#pragma once
#include <cuda_bf16.h>

#include "kernels/sample/sample.h"
#include "ptx/memory.cuh"
#include "tile/base.h"
#include "tile/cluster.cuh"
#include "tile/ordered.h"
#include "tile/philox.h"
#include "tile/vector.cuh"

namespace l4k {

constexpr int kSampleMaxThreads = 1024;
constexpr uint32_t kInfinity = 0x7f800000, kAbsent = 0x7fffffff;

// A CTA's share of a row: tokens [first, first + size), `size` a multiple of 8 and the same for all.
struct SampleRow {
  int64_t row;
  int first, size, vocab;
  float* values;  // [size] in shared memory
  uint32_t* distances() const { return reinterpret_cast<uint32_t*>(values); }
};

struct SampleReduce {
  ClusterScratch& scratch;
  int parity = 0;

  template <typename T>
  __device__ __forceinline__ T operator()(T value, T zero) {
    return cluster_reduce(value, zero, scratch, kSampleCluster, parity);
  }
};

// A distance is kept if it is below `limit`, or equal to it and among the first `ties` by id.
struct Cut {
  uint32_t limit, ties;
  uint32_t count;  // tokens kept
};

template <typename T>
__device__ __forceinline__ float logit_at(const SampleParams& params, int64_t row, int id) {
  const float value = static_cast<const T*>(params.logits)[row * params.logits_stride + id];
  return value != value ? -INFINITY : value;
}

// Calls `use(id of the first, four values)` for the thread's groups of four.
template <typename Use>
__device__ __forceinline__ void for_each_quad(const SampleRow& row, Use use) {
  for (int i = 4 * threadIdx.x; i < row.size; i += 4 * blockDim.x)
    use(row.first + i, *reinterpret_cast<float4*>(row.values + i));
}

// Logits into shared memory; the thread's best token.
template <typename T>
__device__ __forceinline__ Candidate load(const SampleParams& params, const SampleRow& row) {
  constexpr int kPerLoad = 16 / sizeof(T);
  const T* logits = static_cast<const T*>(params.logits) + row.row * params.logits_stride;
  const bool vectors = params.logits_stride * sizeof(T) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(params.logits) % 16 == 0;
  Candidate best{0, kNoId};
#pragma unroll 4
  for (int i = kPerLoad * threadIdx.x; i < row.size; i += kPerLoad * blockDim.x) {
    const int id = row.first + i;
    float v[kPerLoad];
    if (vectors && id + kPerLoad <= row.vocab) {
      const uint4 raw = ptx::load_streaming(logits + id);
      if constexpr (kPerLoad == 8) {
        unpack(raw, v);
      } else {
        v[0] = __uint_as_float(raw.x), v[1] = __uint_as_float(raw.y);
        v[2] = __uint_as_float(raw.z), v[3] = __uint_as_float(raw.w);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kPerLoad; ++j)
        v[j] = id + j < row.vocab ? static_cast<float>(logits[id + j]) : -INFINITY;
    }
#pragma unroll
    for (int j = 0; j < kPerLoad; ++j) {
      if (v[j] != v[j]) v[j] = -INFINITY;
      // + 0 turns -0 into 0: equal logits must have equal keys.
      const uint32_t key = ordered_key(__float_as_uint(v[j] + 0.f));
      if (key > best.score) best = {key, static_cast<uint32_t>(id + j)};
    }
#pragma unroll
    for (int j = 0; j < kPerLoad; j += 4)
      *reinterpret_cast<float4*>(row.values + i + j) =
          make_float4(v[j], v[j + 1], v[j + 2], v[j + 3]);
  }
  return best;
}

// Relative to the largest, and exactly 0 there, so that infinite logits need no other care.
__device__ __forceinline__ float above(float logit, float largest) {
  return logit == largest ? 0.f : logit - largest;
}

// values -= largest; returns log(sum(exp(values))).
__device__ __forceinline__ float subtract_largest(const SampleRow& row, float largest,
                                                  SampleReduce& reduce) {
  float sum = 0.f;
  for_each_quad(row, [&](int id, float4& v) {
    v = {above(v.x, largest), above(v.y, largest), above(v.z, largest), above(v.w, largest)};
    // Tokens past the end are -inf, which is not below a largest logit of -inf.
    if (id + 4 > row.vocab) {
      if (id + 0 >= row.vocab) v.x = -INFINITY;
      if (id + 1 >= row.vocab) v.y = -INFINITY;
      if (id + 2 >= row.vocab) v.z = -INFINITY;
      if (id + 3 >= row.vocab) v.w = -INFINITY;
    }
    sum += (__expf(v.x) + __expf(v.y)) + (__expf(v.z) + __expf(v.w));
  });
  return logf(reduce(Mass{0, sum}, Mass{}).sum);
}

// The n likeliest tokens by log-probability. Each thread knows its best; only the owner of the last
// winner looks again.
__device__ __forceinline__ void write_top(const SampleParams& params, const SampleRow& row,
                                          float log_sum, bool writer, SampleReduce& reduce) {
  Candidate last{kNoId, 0}, mine{0, kNoId};
  bool stale = true;
  for (int n = 0; n < params.num_top; ++n) {
    if (stale) {
      mine = {0, kNoId};
      for_each_quad(row, [&](int id, float4& v) {
        const float values[] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t token = id + j, key = ordered_key(__float_as_uint(values[j] - log_sum));
          const bool after = key < last.score || (key == last.score && token > last.id);
          if (after && static_cast<int>(token) < row.vocab) mine = mine + Candidate{key, token};
        }
      });
    }
    last = reduce(mine, Candidate{0, kNoId});
    stale = mine.id == last.id;
    if (writer) {
      params.top_ids[row.row * params.num_top + n] = last.id;
      params.top_logprobs[row.row * params.num_top + n] = __uint_as_float(ordered_bits(last.score));
    }
  }
}

// values become distances.
__device__ __forceinline__ void divide_by_temperature(const SampleRow& row, float temperature) {
  for_each_quad(row, [&](int id, float4& v) {
    float* values = &v.x;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      values[j] = id + j < row.vocab ? fabsf(values[j] / temperature) : __uint_as_float(kAbsent);
  });
}

// Number and mass of the tokens at a distance in [low, high).
__device__ __forceinline__ Mass between(const SampleRow& row, uint32_t low, uint32_t high,
                                        SampleReduce& reduce) {
  Mass mass{};
  for_each_quad(row, [&](int, float4& v) {
    const float values[] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (__float_as_uint(values[j]) - low < high - low) mass = mass + Mass{1, __expf(-values[j])};
  });
  return reduce(mass, Mass{});
}

// The k nearest: the limit is the distance of the k-th.
__device__ __forceinline__ Cut keep_top_k(const SampleRow& row, uint32_t k, SampleReduce& reduce) {
  uint32_t low = 0, high = kInfinity + 1, below = 0;  // fewer than k are below `low`
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const uint32_t count = below + between(row, low, middle, reduce).count;
    if (count == k) return {middle, 0, k};
    if (count < k) low = middle, below = count;
    else high = middle;
  }
  return {low, k - below, k};
}

// Of those: keep a token if all nearer ones together have at most the share p of the mass.
__device__ __forceinline__ Cut keep_top_p(const SampleRow& row, Cut cut, float p,
                                          SampleReduce& reduce) {
  Mass all = between(row, 0, cut.limit, reduce);
  const float tie_mass = __expf(-__uint_as_float(cut.limit));
  if (cut.ties > 0) all = all + Mass{cut.ties, cut.ties * tie_mass};
  const float allowed = fmaxf(p, 0.f) * all.sum;
  uint32_t low = 0, high = cut.ties > 0 ? cut.limit + 1 : cut.limit;
  uint32_t below_high = all.count;
  Mass below{};  // of `low`; at most `allowed`
  while (high - low > 1) {
    if (below_high - below.count == 1) return {high, 0, below_high};
    const uint32_t middle = low + (high - low) / 2;
    const Mass mass = below + between(row, low, middle, reduce);
    if (mass.sum <= allowed) low = middle, below = mass;
    else high = middle, below_high = mass.count;
  }
  // All that is left between the two is at one distance.
  const float each = __expf(-__uint_as_float(low));
  const uint32_t ties = below_high - below.count;
  const float crossing = floorf((allowed - below.sum) / each) + 1.f;
  const uint32_t kept =
      crossing < static_cast<float>(ties) ? static_cast<uint32_t>(crossing) : ties;
  return {low, kept, below.count + kept};
}

// The largest id that is kept at distance `cut.limit`.
__device__ __forceinline__ int last_tie(const SampleRow& row, Cut cut, SampleReduce& reduce) {
  auto count_to = [&](int last) {
    Mass mass{};
    for_each_quad(row, [&](int id, float4& v) {
      const float values[] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; ++j)
        mass.count += __float_as_uint(values[j]) == cut.limit && id + j <= last;
    });
    return reduce(mass, Mass{}).count;
  };
  if (cut.ties == 0) return -1;
  if (count_to(row.vocab) <= cut.ties) return row.vocab;
  int low = -1, high = row.vocab - 1;  // fewer than `ties` up to `low`
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    if (count_to(middle) < cut.ties) low = middle;
    else high = middle;
  }
  return high;
}

// In (0, 1). The large values of -log(-log1p(-u)) come from small u, where float32 is finest.
__device__ __forceinline__ float uniform(uint32_t word) {
  return fminf((static_cast<float>(word) + 0.5f) * 0x1p-32f, 1.f - 0x1p-24f);
}

__device__ __forceinline__ Candidate draw(const SampleParams& params, const SampleRow& row, Cut cut,
                                          int last, float min_p, SampleReduce& reduce) {
  const uint64_t seed = params.seeds[row.row], counter = params.counters[row.row];
  const PhiloxKey key{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  const float farthest = -logf(fminf(fmaxf(min_p, 0.f), 1.f));
  Candidate best{0, kNoId};
  float best_score = -INFINITY;
  for_each_quad(row, [&](int id, float4& v) {
    const float values[] = {v.x, v.y, v.z, v.w};
    bool kept[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t distance = __float_as_uint(values[j]);
      kept[j] = (distance < cut.limit || (distance == cut.limit && id + j <= last)) &&
                values[j] <= farthest;
    }
    if (!(kept[0] || kept[1] || kept[2] || kept[3])) return;
    const PhiloxWords words =
        philox({{static_cast<uint32_t>(id / 4), 0, static_cast<uint32_t>(counter),
                 static_cast<uint32_t>(counter >> 32)}},
               key);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float u = uniform(words.x[j]);
      // noise > best + distance needs u < exp(-(best + distance)): most tokens stop here.
      if (!kept[j] || u > 1.001f * __expf(-(best_score + values[j]))) continue;
      const float score = -logf(-log1pf(-u)) - values[j];
      if (score <= best_score) continue;
      best_score = score;
      best = {ordered_key(__float_as_uint(score + 0.f)), static_cast<uint32_t>(id + j)};
    }
  });
  return reduce(best, Candidate{0, kNoId});
}

template <typename T>
__global__ void __launch_bounds__(kSampleMaxThreads) sample_kernel(SampleParams params, int size) {
  extern __shared__ __align__(16) float smem[];
  __shared__ ClusterScratch scratch;
  const int rank = ptx::cluster_cta_rank();
  const SampleRow row{blockIdx.x / kSampleCluster, rank * size, size, params.vocab, smem};
  const bool writer = rank == 0 && threadIdx.x == 0;
  SampleReduce reduce{scratch};

  ptx::cluster_arrive();
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const float temperature = params.temperature[row.row];
  Candidate chosen = load<T>(params, row);
  ptx::cluster_wait();  // every CTA of the cluster runs: its shared memory may be written
  chosen = reduce(chosen, Candidate{0, kNoId});
  const float largest = __uint_as_float(ordered_bits(chosen.score));
  const float log_sum = subtract_largest(row, largest, reduce);
  write_top(params, row, log_sum, writer, reduce);

  if (temperature > 0.f && largest > -INFINITY) {
    divide_by_temperature(row, temperature);
    const int top_k = params.top_k[row.row];
    const float top_p = params.top_p[row.row];
    Cut cut{kInfinity, static_cast<uint32_t>(row.vocab), static_cast<uint32_t>(row.vocab)};
    int last = row.vocab;
    if (top_k > 0 && top_k < row.vocab) cut = keep_top_k(row, top_k, reduce);
    if (top_p < 1.f) cut = keep_top_p(row, cut, top_p, reduce);
    if (cut.count < static_cast<uint32_t>(row.vocab)) last = last_tie(row, cut, reduce);
    chosen = draw(params, row, cut, last, params.min_p[row.row], reduce);
  }
  if (writer) {
    params.ids[row.row] = chosen.id;
    params.logprobs[row.row] = above(logit_at<T>(params, row.row, chosen.id), largest) - log_sum;
  }
}

}  // namespace l4k
