// The gradient of a "SAME" convolution of stride 1 with respect to its kernel of 3^rank taps:
//
//   dW[t, c, d] = sum over batch and voxels v of x[v + t - 1, c] g[v, d]
//
// Channels last, float32, rank 2 or 3. XLA:CPU takes up to ten times as long for it as for the
// convolution itself.
//
// A row is the last spatial axis at one place of the others. A *stream* is one channel of x in one
// of the 3^(rank-1) rows of x around a row of g. A *block* is WIDTH channels of g, or the rest. The
// three taps along the row need x[v, c] with g[v - 1], g[v] and g[v + 1], which are neighbours in
// memory: each value of x is loaded once and multiplied by up to three vectors. The innermost loop
// keeps the sums of STREAMS streams in registers.
//
// The rows are cut into parts, whose sums are added up in order. Shapes alone decide on the parts,
// so the result has the same bits for any number of threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int TAPS = 3;

// Registers: STREAMS x 3 sums, 3 vectors of g and one value of x. With 9 streams at a time, those
// of a volume come out even whatever the number of channels.
#if defined(__AVX512F__)
constexpr int WIDTH = 16, STREAMS = 9;  // 32 registers of 16 floats
#elif defined(__AVX2__)
constexpr int WIDTH = 8, STREAMS = 4;  // 16 registers of 8
#elif defined(__ARM_NEON)
constexpr int WIDTH = 4, STREAMS = 9;  // 32 registers of 4
#else
constexpr int WIDTH = 4, STREAMS = 4;
#endif
constexpr int64_t LANES = TAPS * WIDTH;  // sums of a stream

constexpr int64_t SLAB = 32 << 10;  // bytes of g for all streams in turn, from the nearest cache
constexpr int64_t ITEMS = 64;       // of work, for at most as many threads
constexpr int64_t SUMS = 4 << 20;   // bytes that the sums of all parts may take

typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef Vector Unaligned __attribute__((aligned(4), may_alias));

// One row of a block of g, and the rows of x that some streams read beside it.
struct Row {
  const float* x[STREAMS];
  const float* g;
};

// sums[stream][shift * step + channel] += x[v, stream] g[v + shift - 1, channel] over rows and
// voxels. `step` channels of g lie between zeros for the voxels before and after each row; what
// follows the last shift in the last vector is of no meaning.
template <int VECTORS>
void multiply(const std::vector<Row>& rows, int64_t count, int64_t length, int64_t stride,
              int64_t step, float* sums) {
  Vector sum[STREAMS][VECTORS];
#pragma GCC unroll 16
  for (int s = 0; s < STREAMS; ++s) {
    const Unaligned* from = reinterpret_cast<const Unaligned*>(sums + s * LANES);
#pragma GCC unroll 3
    for (int i = 0; i < VECTORS; ++i) sum[s][i] = from[i];
  }
  for (int64_t r = 0; r < count; ++r) {
    const float* x[STREAMS];
#pragma GCC unroll 16
    for (int s = 0; s < STREAMS; ++s) x[s] = rows[r].x[s];
    const float* g = rows[r].g;
    int64_t at = 0;
    for (int64_t v = 0; v < length; ++v, at += stride, g += step) {
      const Unaligned* near = reinterpret_cast<const Unaligned*>(g);
#pragma GCC unroll 16
      for (int s = 0; s < STREAMS; ++s) {
        const Vector value = x[s][at] - Vector{};  // in all lanes
#pragma GCC unroll 3
        for (int i = 0; i < VECTORS; ++i) sum[s][i] += value * near[i];
      }
    }
  }
#pragma GCC unroll 16
  for (int s = 0; s < STREAMS; ++s) {
    Unaligned* to = reinterpret_cast<Unaligned*>(sums + s * LANES);
#pragma GCC unroll 3
    for (int i = 0; i < VECTORS; ++i) to[i] = sum[s][i];
  }
}

// Shapes as for a volume: a picture has one plane, and no taps across planes.
struct Problem {
  const float* x;  // [batch, planes, rows, length, c]
  const float* g;  // [batch, planes, rows, length, d]
  int64_t batch, planes, rows, length, c, d;
  int64_t plane_taps;  // 3 or 1

  int64_t all_rows() const { return batch * planes * rows; }
  int64_t streams() const { return plane_taps * TAPS * c; }
  int64_t passes() const { return (streams() + STREAMS - 1) / STREAMS; }  // over a slab of g
  int64_t blocks() const { return (d + WIDTH - 1) / WIDTH; }
  int64_t sums() const { return passes() * STREAMS * LANES; }  // of one block
  int64_t channels(int64_t block) const { return std::min<int64_t>(WIDTH, d - block * WIDTH); }
};

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float, Free>;

Floats zeros(int64_t count) {
  const size_t bytes = (4 * count + 63) / 64 * 64;
  float* p = static_cast<float*>(std::aligned_alloc(64, bytes));
  if (p) std::memset(p, 0, bytes);
  return Floats(p);
}

// A row of g: its number among all, and its place.
struct Place {
  int64_t number, z, y;
};

// Adds the products of the rows from `first` up to `last`, for one block. False: out of memory.
bool add_rows(const Problem& p, int64_t first, int64_t last, int64_t block, float* sums) {
  const int64_t step = p.channels(block), padded = step * (p.length + 2);
  const int64_t slab = std::clamp<int64_t>(SLAB / (4 * padded), 1, last - first);
  const Floats packed = zeros(slab * padded + LANES), nothing = zeros(p.length * p.c);
  if (!packed || !nothing) return false;
  std::vector<Place> places(slab);
  std::vector<Row> rows(slab);
  for (; first < last; first += slab) {
    const int64_t height = std::min(slab, last - first);
    for (int64_t r = 0; r < height; ++r) {
      const int64_t number = first + r;
      places[r] = {number, number / p.rows % p.planes, number % p.rows};
      float* to = packed.get() + r * padded + step;
      const float* from = p.g + number * p.length * p.d + block * WIDTH;
      for (int64_t v = 0; v < p.length; ++v, to += step, from += p.d) {
        if (step == WIDTH) {
          std::memcpy(to, from, 4 * WIDTH);
        } else {
          std::copy_n(from, step, to);
        }
      }
    }
    for (int64_t pass = 0; pass < p.passes(); ++pass) {
      int64_t dz[STREAMS], dy[STREAMS], offset[STREAMS];
      for (int64_t s = 0; s < STREAMS; ++s) {
        const int64_t stream = pass * STREAMS + s, tap = stream / p.c;
        // A stream too many reads zeros, as do those whose row lies outside.
        dz[s] = stream < p.streams() ? tap / TAPS - p.plane_taps / 2 : p.planes;
        dy[s] = tap % TAPS - 1;
        offset[s] = (dz[s] * p.rows + dy[s]) * p.length * p.c + stream % p.c;
      }
      int64_t count = 0;
      for (int64_t r = 0; r < height; ++r) {
        const float* x = p.x + places[r].number * p.length * p.c;
        bool any = false;
        for (int64_t s = 0; s < STREAMS; ++s) {
          const int64_t z = places[r].z + dz[s], y = places[r].y + dy[s];
          const bool inside = 0 <= z && z < p.planes && 0 <= y && y < p.rows;
          rows[count].x[s] = inside ? x + offset[s] : nothing.get();
          any |= inside;
        }
        rows[count].g = packed.get() + r * padded;
        count += any;
      }
      const int64_t vectors = (TAPS * step + WIDTH - 1) / WIDTH;
      const auto f = vectors == 1 ? multiply<1> : vectors == 2 ? multiply<2> : multiply<3>;
      f(rows, count, p.length, p.c, step, sums + pass * STREAMS * LANES);
    }
  }
  return true;
}

// Calls f(0) ... f(count - 1) on the threads of the pool and this one. It must not wait for a task
// of the pool that has not started: all threads could be waiting like that. So the tasks only help:
// each takes the next number until none is left, this thread does too, and waits for numbers that
// a running task has taken. Tasks that start later find nothing to do.
template <typename F>
void in_parallel(ffi::ThreadPool& pool, int64_t count, const F& f) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, count, &f] {
    for (int64_t i; (i = shared->next++) < count;) {
      f(i);
      if (++shared->done == count) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->all_done.notify_all();
      }
    }
  };
  for (int64_t helpers = std::min(pool.num_threads(), count) - 1; helpers > 0; --helpers) {
    pool.Schedule([work] { work(); });
  }
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == count; });
}

using Array = ffi::Buffer<ffi::F32>;

ffi::Error weight_gradient(ffi::ThreadPool pool, Array x, Array g, ffi::Result<Array> result) {
  const auto shape = x.dimensions();
  const size_t rank = shape.size() - 2;
  if (rank != 2 && rank != 3) return ffi::Error::InvalidArgument("rank must be 2 or 3");
  Problem p{};
  p.x = x.typed_data();
  p.g = g.typed_data();
  p.batch = shape[0];
  p.planes = rank == 3 ? shape[1] : 1;
  p.plane_taps = rank == 3 ? TAPS : 1;
  p.rows = shape[rank - 1];
  p.length = shape[rank];
  p.c = shape[rank + 1];
  p.d = g.dimensions()[rank + 1];

  const int64_t blocks = p.blocks(), each = p.sums();
  int64_t parts = std::min((ITEMS + blocks - 1) / blocks, SUMS / (4 * each * blocks));
  parts = std::clamp<int64_t>(parts, 1, std::max<int64_t>(p.all_rows(), 1));
  const Floats sums = zeros(parts * blocks * each);
  std::atomic<bool> enough{sums != nullptr};
  in_parallel(pool, enough ? parts * blocks : 0, [&](int64_t i) {
    const int64_t part = i / blocks;
    const int64_t first = part * p.all_rows() / parts, last = (part + 1) * p.all_rows() / parts;
    if (!add_rows(p, first, last, i % blocks, sums.get() + i * each)) enough = false;
  });
  if (!enough) return ffi::Error::Internal("out of memory");

  float* const out = result->typed_data();
  in_parallel(pool, p.streams(), [&](int64_t stream) {
    const int64_t tap = stream / p.c, c = stream % p.c;
    for (int64_t block = 0; block < blocks; ++block) {
      float total[LANES] = {};
      for (int64_t part = 0; part < parts; ++part) {
        const float* from = sums.get() + (part * blocks + block) * each + stream * LANES;
        for (int64_t lane = 0; lane < LANES; ++lane) total[lane] += from[lane];
      }
      // Shifting g forwards is shifting x back.
      const int64_t step = p.channels(block);
      for (int64_t shift = 0; shift < TAPS; ++shift) {
        const int64_t t = tap * TAPS + TAPS - 1 - shift;
        std::copy_n(total + shift * step, step, out + (t * p.c + c) * p.d + block * WIDTH);
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    WeightGradient, weight_gradient,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Ret<Array>());
