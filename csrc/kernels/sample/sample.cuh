// One token per row: argmax of the logits, or of (logit / temperature + Gumbel noise) among the
// tokens that top-k, top-p and min-p leave
//
// A cluster of kSampleCluster CTAs holds a row in shared memory, so everything after one pass over
// memory is a pass over shared memory and one reduction over the cluster (tile/cluster.cuh): no
// sort, no workspace, one launch. Greedy rows stop after one reduction.
//
//   values    logits; then distances
//   distance  (largest - logit) / temperature >= 0 as bits of a float, which order as the floats
//             do: 0 is the likeliest token, kAbsent no token at all
//   Cutoff    which distances are kept; found by bisection, with exact counts
//
// A row with a NaN, or with no token above -inf, has no next token: id -1, and NaN for the rest.
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
constexpr float kLargestFloat = 0x1.fffffep127f;

// A CTA's share of a row: tokens [first, first + size), `size` a multiple of 8 and the same for all.
struct SampleRow {
  int64_t row;
  int first, size, vocab;
  float* values;  // [size] in shared memory
};

constexpr uint32_t kNoId = ~0u;

// The likelier of two tokens: by score, then by lower id. Scores are ordered as unsigned integers.
struct Candidate {
  uint32_t score = 0, id = kNoId;

  __device__ __forceinline__ Candidate operator+(Candidate other) const {
    return other.score > score || (other.score == score && other.id < id) ? other : *this;
  }
  __device__ __forceinline__ Candidate warp_reduce() const {
    const uint32_t best = ptx::warp_max_u32(score);
    return {best, ptx::warp_min_u32(score == best ? id : kNoId)};
  }
  __device__ __forceinline__ uint4 bits() const { return {score, id, 0, 0}; }
  static __device__ __forceinline__ Candidate from(uint4 v) { return {v.x, v.y}; }
};

// Relative to the largest, and exactly 0 there, so that infinite logits need no other care.
__device__ __forceinline__ float above(float logit, float largest) {
  return logit == largest ? 0.f : logit - largest;
}

// exp(x) for x <= 0.
__device__ __forceinline__ float exp_of(float x) { return ptx::exp2_approx(x * 1.44269504f); }

// The likeliest of some tokens, and the sum of exp(logit - its logit) over all of them: no id and no
// sum without a token above -inf, and a NaN if one of them is.
struct Likeliest {
  float logit = kMinusInfinity;
  uint32_t id = kNoId;
  float sum = 0.f;

  __device__ __forceinline__ Likeliest warp_reduce() const {
    // + 0 turns -0 into 0: equal logits must have equal keys.
    const Candidate best = Candidate{ordered_key(__float_as_uint(logit + 0.f)), id}.warp_reduce();
    const float largest = __uint_as_float(ordered_bits(best.score));
    return {largest, best.id, warp_sum(sum * exp_of(above(logit, largest)))};
  }
  __device__ __forceinline__ uint4 bits() const {
    return {__float_as_uint(logit), id, __float_as_uint(sum), 0};
  }
  static __device__ __forceinline__ Likeliest from(uint4 v) {
    return {__uint_as_float(v.x), v.y, __uint_as_float(v.z)};
  }
};

// Tokens of an interval of distances, split at a distance: number and mass of those below it, the
// farthest below it and the nearest of the others.
struct Split {
  uint32_t count = 0;
  float mass = 0.f;
  uint32_t last = 0, next = ~0u;

  __device__ __forceinline__ Split operator+(Split other) const {
    return {count + other.count, mass + other.mass, max(last, other.last), min(next, other.next)};
  }
  __device__ __forceinline__ Split warp_reduce() const {
    return {ptx::warp_sum_u32(count), warp_sum(mass), ptx::warp_max_u32(last),
            ptx::warp_min_u32(next)};
  }
  __device__ __forceinline__ uint4 bits() const {
    return {count, __float_as_uint(mass), last, next};
  }
  static __device__ __forceinline__ Split from(uint4 v) {
    return {v.x, __uint_as_float(v.y), v.z, v.w};
  }
};

struct SampleReduce {
  ClusterScratch& scratch;
  int parity = 0;

  template <typename T>
  __device__ __forceinline__ T operator()(T value) {
    return cluster_reduce(value, scratch, kSampleCluster, parity);
  }
};

// A distance is kept if it is below `limit`, or equal to it and among the first `ties` by id.
struct Cutoff {
  uint32_t limit, ties;
  uint32_t count;  // tokens kept
};

template <typename T>
__device__ __forceinline__ float logit_at(const SampleParams& params, int64_t row, int id) {
  return static_cast<const T*>(params.logits)[row * params.logits_stride + id];
}

// Calls `use(id of the first, four values)` for the thread's groups of four.
template <typename Use>
__device__ __forceinline__ void for_each_quad(const SampleRow& row, Use use) {
  for (int i = 4 * threadIdx.x; i < row.size; i += 4 * blockDim.x) {
    const float4 v = *reinterpret_cast<const float4*>(row.values + i);
    const float values[] = {v.x, v.y, v.z, v.w};
    use(row.first + i, values);
  }
}

// Logits into shared memory, and the likeliest of the thread's tokens. All loads of a round are in
// flight together: one round is 262,144 tokens.
template <typename T>
__device__ __forceinline__ Likeliest load(const SampleParams& params, const SampleRow& row) {
  constexpr int kPerLoad = 16 / sizeof(T), kLoads = 32 / kPerLoad;
  const T* logits = static_cast<const T*>(params.logits) + row.row * params.logits_stride;
  const bool vectors = params.logits_stride * sizeof(T) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(params.logits) % 16 == 0;
  const int step = kPerLoad * blockDim.x;
  // Whole vectors end here: the row may end within one, and its last CTAs may have none.
  const int whole = vectors ? min(row.size, row.vocab - row.first - kPerLoad + 1) : 0;
  Likeliest mine;
  for (int begin = kPerLoad * threadIdx.x; begin < row.size; begin += kLoads * step) {
    uint4 raw[kLoads];
    const T* from = logits + row.first + begin;
#pragma unroll
    for (int u = 0; u < kLoads; ++u, from += step)
      if (begin + u * step < whole) raw[u] = ptx::load_streaming(from);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int i = begin + u * step, id = row.first + i;
      if (i >= row.size) break;
      float v[kPerLoad];
      if (i < whole) {
        if constexpr (kPerLoad == 8) {
          unpack(raw[u], v);
        } else {
          v[0] = __uint_as_float(raw[u].x), v[1] = __uint_as_float(raw[u].y);
          v[2] = __uint_as_float(raw[u].z), v[3] = __uint_as_float(raw[u].w);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kPerLoad; ++j)
          v[j] = id + j < row.vocab ? static_cast<float>(logits[id + j]) : -INFINITY;
      }
      float largest = kMinusInfinity;
#pragma unroll
      for (int j = 0; j < kPerLoad; ++j) largest = fmaxf(largest, v[j]);  // of what is no NaN
      if (largest > mine.logit) {
        mine.sum *= exp_of(mine.logit - largest);
        mine.logit = largest;
#pragma unroll
        for (int j = kPerLoad - 1; j >= 0; --j)
          if (v[j] == largest) mine.id = id + j;
      }
      // Of two equal infinities the difference would be NaN: the base is finite.
      const float base = fminf(fmaxf(mine.logit, -kLargestFloat), kLargestFloat);
#pragma unroll
      for (int j = 0; j < kPerLoad; ++j) {
        const float x = v[j] - base;
        mine.sum += exp_of(x > 0.f ? 0.f : x);  // fminf would lose a NaN
      }
      if constexpr (kPerLoad == 8) {
        // Half the lanes of a phase write their upper quad first: else two would meet in each bank.
        const int upper = threadIdx.x & 4;
#pragma unroll
        for (int order = 0; order < 8; order += 4) {
          const bool high = (upper ^ order) != 0;
          ptx::store_shared(row.values + i + (high ? 4 : 0), high ? v[4] : v[0], high ? v[5] : v[1],
                            high ? v[6] : v[2], high ? v[7] : v[3]);
        }
      } else {
        ptx::store_shared(row.values + i, v[0], v[1], v[2], v[3]);
      }
    }
  }
  return mine;
}

// What a row gives that has no next token.
__device__ __forceinline__ void write_nothing(const SampleParams& params, int64_t row) {
  params.ids[row] = -1;
  params.logprobs[row] = NAN;
  for (int64_t n = row * params.num_top; n < (row + 1) * params.num_top; ++n) {
    params.top_ids[n] = -1;
    params.top_logprobs[n] = NAN;
  }
}

// The n likeliest tokens by log-probability. Each thread knows its best; only the owner of the last
// winner looks again.
__device__ __forceinline__ void write_top(const SampleParams& params, const SampleRow& row,
                                          float largest, float log_sum, bool writer,
                                          SampleReduce& reduce) {
  Candidate last{kNoId, 0}, mine;
  bool stale = true;
  for (int n = 0; n < params.num_top; ++n) {
    if (stale) {
      mine = {};
      for_each_quad(row, [&](int id, const float (&values)[4]) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float logprob = above(values[j], largest) - log_sum;
          const uint32_t token = id + j, key = ordered_key(__float_as_uint(logprob));
          const bool after = key < last.score || (key == last.score && token > last.id);
          if (after && static_cast<int>(token) < row.vocab) mine = mine + Candidate{key, token};
        }
      });
    }
    last = reduce(mine);
    stale = mine.id == last.id;
    if (writer) {
      params.top_ids[row.row * params.num_top + n] = last.id;
      params.top_logprobs[row.row * params.num_top + n] = __uint_as_float(ordered_bits(last.score));
    }
  }
}

// Logits become distances. Past the end there is nothing.
__device__ __forceinline__ void divide_by_temperature(const SampleRow& row, float largest,
                                                      float temperature) {
  for (int i = 4 * threadIdx.x; i < row.size; i += 4 * blockDim.x) {
    const float4 v = *reinterpret_cast<const float4*>(row.values + i);
    float values[] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j)
      values[j] = row.first + i + j < row.vocab ? fabsf(above(values[j], largest) / temperature)
                                                : __uint_as_float(kAbsent);
    ptx::store_shared(row.values + i, values[0], values[1], values[2], values[3]);
  }
}

// Splits the tokens at a distance in [low, high).
__device__ __forceinline__ Split split(const SampleRow& row, uint32_t low, uint32_t middle,
                                       uint32_t high, SampleReduce& reduce) {
  Split all;
  for_each_quad(row, [&](int, const float (&values)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t distance = __float_as_uint(values[j]);
      if (distance - low >= high - low) continue;
      if (distance < middle) all = all + Split{1, __expf(-values[j]), distance, ~0u};
      else all.next = min(all.next, distance);
    }
  });
  return reduce(all);
}

// Where to split [low, high) next. The limit is seldom beyond 32: a few halves of that leave one
// power of two, in which halves of the bits are halves of the distance. Those alone end every
// search, but would first spend some passes on the exponent.
__device__ __forceinline__ uint32_t pivot(uint32_t low, uint32_t high, int pass) {
  const float farthest = fminf(__uint_as_float(high - 1), 32.f);
  const uint32_t middle = __float_as_uint(0.5f * (__uint_as_float(low) + farthest));
  return pass < 5 && low < middle ? middle : low + (high - low) / 2;
}

// The k nearest: the limit is the distance of the k-th. Both ends move to tokens, so that the search
// ends when one distance is left.
__device__ __forceinline__ Cutoff keep_top_k(const SampleRow& row, uint32_t k,
                                             SampleReduce& reduce) {
  uint32_t low = 0, high = kInfinity + 1, below = 0;  // fewer than k below `low`, k below `high`
  for (int pass = 0; high - low > 1; ++pass) {
    const uint32_t middle = pivot(low, high, pass);
    const Split parts = split(row, low, middle, high, reduce);
    const uint32_t count = below + parts.count;
    if (count == k) return {middle, 0, k};
    if (count < k) low = parts.next, below = count;
    else high = parts.last + 1;
  }
  return {low, k - below, k};
}

// Of those: keep a token if all nearer ones together have at most the share p of the mass.
__device__ __forceinline__ Cutoff keep_top_p(const SampleRow& row, Cutoff cutoff, float p,
                                             SampleReduce& reduce) {
  Split all = split(row, 0, cutoff.limit, cutoff.limit, reduce);
  if (cutoff.ties > 0)
    all = all + Split{cutoff.ties, cutoff.ties * __expf(-__uint_as_float(cutoff.limit))};
  const float allowed = fmaxf(p, 0.f) * all.mass;
  uint32_t low = 0, high = cutoff.ties > 0 ? cutoff.limit + 1 : cutoff.limit;
  uint32_t below = 0, below_high = all.count;
  float mass = 0.f;  // below `low`; at most `allowed`
  for (int pass = 0; high - low > 1; ++pass) {
    if (below_high - below == 1) return {high, 0, below_high};
    const uint32_t middle = pivot(low, high, pass);
    const Split parts = split(row, low, middle, high, reduce);
    const uint32_t count = below + parts.count;
    // Rounding may leave the mass of all below the allowed one: then there is nothing to move to.
    if (mass + parts.mass <= allowed && count < below_high)
      low = parts.next, below = count, mass += parts.mass;
    else high = parts.last + 1, below_high = count;
  }
  // All that is left is at one distance.
  const uint32_t ties = below_high - below;
  const float crossing = floorf((allowed - mass) / __expf(-__uint_as_float(low))) + 1.f;
  const uint32_t kept =
      crossing < static_cast<float>(ties) ? static_cast<uint32_t>(crossing) : ties;
  return {low, kept, below + kept};
}

// The largest id that is kept at distance `cutoff.limit`: in the CTA where the last one lies, by
// bisection on the id.
__device__ __forceinline__ int last_tie(const SampleRow& row, Cutoff cutoff, SampleReduce& reduce) {
  __shared__ uint32_t counts[2][32];
  if (cutoff.ties == 0) return -1;
  auto count_to = [&](int last) {
    uint32_t count = 0;
    for_each_quad(row, [&](int id, const float (&values)[4]) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        count += __float_as_uint(values[j]) == cutoff.limit && id + j <= last;
    });
    return count;
  };
  cluster_share(Split{count_to(row.vocab)}, reduce.scratch, kSampleCluster, reduce.parity);
  uint32_t before = 0, mine = 0;
  const int rank = ptx::cluster_cta_rank();
  for (int r = 0; r <= rank; ++r) {
    before += mine;
    mine = Split::from(reduce.scratch.ranks[reduce.parity][r]).count;
  }
  reduce.parity ^= 1;
  Split found;
  if (before < cutoff.ties && cutoff.ties <= before + mine) {
    int low = row.first - 1, high = row.first + row.size - 1;  // too few ties up to `low`
    for (int parity = 0; high - low > 1; parity ^= 1) {
      const int middle = low + (high - low) / 2;
      if (before + cta_sum(count_to(middle), counts[parity]) < cutoff.ties) low = middle;
      else high = middle;
    }
    found.last = high;
  }
  return reduce(found).last;
}

// In (0, 1). The large values of -log(-log1p(-u)) come from small u, where float32 is finest.
__device__ __forceinline__ float uniform(uint32_t word) {
  return fminf((static_cast<float>(word) + 0.5f) * 0x1p-32f, 1.f - 0x1p-24f);
}

__device__ __forceinline__ float gumbel(float u) { return -logf(-log1pf(-u)); }

// Largest of noise - distance among the kept tokens. `likeliest` has distance 0, so its noise is a
// bound that most tokens fall short of, if it is kept: a high temperature can bring others to
// distance 0, and of equals the lower ids are kept.
__device__ __forceinline__ Candidate draw(const SampleParams& params, const SampleRow& row,
                                          Cutoff cutoff, int last, float min_p, uint32_t likeliest,
                                          SampleReduce& reduce) {
  const uint64_t seed = params.seeds[row.row], counter = params.counters[row.row];
  const PhiloxKey key{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  auto words_of = [&](uint32_t id) {
    return philox(
        {{id / 4, 0, static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32)}}, key);
  };
  const float farthest = -logf(fminf(fmaxf(min_p, 0.f), 1.f));
  Candidate best;
  const PhiloxWords first = words_of(likeliest);
  const uint32_t word = likeliest & 2 ? (likeliest & 1 ? first.x[3] : first.x[2])
                                      : (likeliest & 1 ? first.x[1] : first.x[0]);
  const bool is_kept = cutoff.limit > 0 || static_cast<int>(likeliest) <= last;
  // The token itself must still pass.
  float best_score = is_kept ? gumbel(uniform(word)) - 1e-3f : -INFINITY;
  for_each_quad(row, [&](int id, const float (&values)[4]) {
    bool kept[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t distance = __float_as_uint(values[j]);
      kept[j] = (distance < cutoff.limit || (distance == cutoff.limit && id + j <= last)) &&
                values[j] <= farthest;
    }
    if (!(kept[0] || kept[1] || kept[2] || kept[3])) return;
    const PhiloxWords words = words_of(id);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float u = uniform(words.x[j]);
      // noise > best + distance needs u < exp(-(best + distance)): most tokens stop here.
      if (!kept[j] || u > 1.001f * __expf(-(best_score + values[j]))) continue;
      const float score = gumbel(u) - values[j];
      if (score <= best_score) continue;
      best_score = score;
      best = {ordered_key(__float_as_uint(score + 0.f)), static_cast<uint32_t>(id + j)};
    }
  });
  return reduce(best);
}

template <typename T>
__global__ void __launch_bounds__(kSampleMaxThreads) sample_kernel(SampleParams params, int size) {
  extern __shared__ __align__(16) float smem[];
  __shared__ ClusterScratch scratch;
  const int rank = ptx::cluster_cta_rank();
  const SampleRow row{blockIdx.x / kSampleCluster, rank * size, size, params.vocab, smem};
  const bool writer = rank == 0 && threadIdx.x == 0;
  SampleReduce reduce{scratch};

  ptx::cluster_arrive_relaxed();
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  float temperature = params.temperature[row.row];
  const float top_p = params.top_p[row.row], min_p = params.min_p[row.row];
  const bool settings = temperature == temperature && top_p == top_p && min_p == min_p;
  if (temperature > kLargestFloat) temperature = kLargestFloat;  // inf / inf would be NaN
  const Likeliest mine = load<T>(params, row);
  ptx::cluster_wait();  // every CTA of the cluster runs: its shared memory may be written
  const Likeliest best = reduce(mine);
  if (!settings || !(best.sum > 0.f)) {
    if (writer) write_nothing(params, row.row);
    return;
  }
  const float largest = best.logit;
  const float log_sum = logf(best.sum);
  write_top(params, row, largest, log_sum, writer, reduce);

  uint32_t chosen = best.id;
  if (temperature > 0.f) {
    divide_by_temperature(row, largest, temperature);
    const int top_k = params.top_k[row.row];
    Cutoff cutoff{kInfinity + 1, 0, static_cast<uint32_t>(row.vocab)};
    if (top_k > 0 && top_k < row.vocab) cutoff = keep_top_k(row, top_k, reduce);
    if (top_p < 1.f) cutoff = keep_top_p(row, cutoff, top_p, reduce);
    const int last = last_tie(row, cutoff, reduce);
    chosen = draw(params, row, cutoff, last, min_p, best.id, reduce).id;
  }
  if (writer) {
    params.ids[row.row] = chosen;
    const float logit = chosen == best.id ? largest : logit_at<T>(params, row.row, chosen);
    params.logprobs[row.row] = above(logit, largest) - log_sum;
  }
}

}  // namespace l4k
