// The gradient of a "SAME" convolution of stride 1 with respect to its kernel of 3^rank taps.
//
//   dW[t, c, d] = sum over batch and voxels v of x[v + t - 1, c] g[v, d]
//
// Channels last, float32, rank 2 or 3; XLA:CPU takes up to ten times as long for it as for the
// convolution itself. A row is the last spatial axis at one place of the others. Along a row the
// three taps need x[v, c] with g[v + 1], g[v] and g[v - 1]: one load of x feeds three products.
// A *stream* is one channel of x in one of the 3^(rank-1) rows around that of g. The innermost
// loop keeps the sums of STREAMS streams x 3 taps x one vector of g's channels in registers.
//
// The voxels are cut into parts, and each part's sums are added up in order. Shapes alone decide
// on the parts, so the result has the same bits for any number of threads.

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

// Registers: STREAMS x 3 sums, 3 vectors of g and one value of x. With 9 streams, those of a
// volume come out even whatever the number of channels.
#if defined(__AVX512F__)
constexpr int WIDTH = 16, STREAMS = 9;  // 32 registers of 16 floats
#elif defined(__AVX2__)
constexpr int WIDTH = 8, STREAMS = 4;  // 16 registers of 8
#elif defined(__ARM_NEON)
constexpr int WIDTH = 4, STREAMS = 9;  // 32 registers of 4
#else
constexpr int WIDTH = 4, STREAMS = 4;
#endif
constexpr int TAPS = 3;
constexpr int64_t SLAB = 32 << 10;    // bytes of g that are used again and again, from a near cache
constexpr int64_t ITEMS = 64;         // of work, for as many threads
constexpr int64_t SUMS = 4 << 20;  // bytes that the sums of all parts may take

typedef float Vector __attribute__((vector_size(4 * WIDTH)));

// One row of g, and the rows of x that the streams of a block read beside it.
struct Row {
  const float* x[STREAMS];
  const float* g;
};

// sums[stream][tap] += over rows and voxels; g has a vector of zeros before and after each row.
void multiply(const Row* rows, int64_t count, int64_t length, int64_t stride,
              float* __restrict__ sums) {
  Vector sum[STREAMS][TAPS];
  std::memcpy(sum, sums, sizeof sum);
  for (int64_t r = 0; r < count; ++r) {
    const float* x[STREAMS];
#pragma GCC unroll 16
    for (int s = 0; s < STREAMS; ++s) x[s] = rows[r].x[s];
    const Vector* g = reinterpret_cast<const Vector*>(rows[r].g);
    Vector before = g[0], here = g[1];
    int64_t at = 0;
    for (int64_t v = 0; v < length; ++v, at += stride) {
      const Vector after = g[v + 2];
#pragma GCC unroll 16
      for (int s = 0; s < STREAMS; ++s) {
        const Vector value = x[s][at] - Vector{};  // in all lanes
        sum[s][0] += value * after;
        sum[s][1] += value * here;
        sum[s][2] += value * before;
      }
      before = here;
      here = after;
    }
  }
  std::memcpy(sums, sum, sizeof sum);
}

// Shapes, as for a volume: a picture has one plane and no taps across planes.
struct Problem {
  const float* x;  // [batch, planes, rows, length, c]
  const float* g;  // [batch, planes, rows, length, d]
  int64_t batch, planes, rows, length, c, d;
  int64_t plane_taps;  // 3 or 1

  int64_t streams() const { return plane_taps * TAPS * c; }
  int64_t blocks() const { return (streams() + STREAMS - 1) / STREAMS; }
  int64_t vectors() const { return (d + WIDTH - 1) / WIDTH; }
  int64_t sums() const { return blocks() * STREAMS * TAPS * WIDTH; }  // floats of one vector
  int64_t all_rows() const { return batch * planes * rows; }
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

// Adds the products of the rows from `first` up to `last`, for one vector of g's channels.
void add_rows(const Problem& p, int64_t first, int64_t last, int64_t vector, float* sums) {
  const int64_t padded = WIDTH * (p.length + 2);
  const int64_t slab = std::clamp<int64_t>(SLAB / (4 * padded), 1, last - first);
  const int64_t channel = vector * WIDTH, channels = std::min<int64_t>(WIDTH, p.d - channel);
  const Floats packed = zeros(slab * padded), nothing = zeros(p.length * p.c);
  std::vector<Place> places(slab);
  std::vector<Row> rows(slab);
  for (; first < last; first += slab) {
    const int64_t height = std::min(slab, last - first);
    for (int64_t r = 0; r < height; ++r) {
      const int64_t number = first + r;
      places[r] = {number, number / p.rows % p.planes, number % p.rows};
      float* to = packed.get() + r * padded + WIDTH;
      const float* from = p.g + number * p.length * p.d + channel;
      for (int64_t v = 0; v < p.length; ++v, to += WIDTH, from += p.d) {
        if (channels == WIDTH) {
          std::memcpy(to, from, 4 * WIDTH);
        } else {
          std::memcpy(to, from, 4 * channels);
        }
      }
    }
    for (int64_t block = 0; block < p.blocks(); ++block) {
      int64_t dz[STREAMS], dy[STREAMS], offset[STREAMS];
      for (int64_t s = 0; s < STREAMS; ++s) {
        const int64_t stream = block * STREAMS + s, tap = stream / p.c;
        // A stream too many reads zeros, as do those whose row lies outside.
        dz[s] = stream < p.streams() ? tap / TAPS - p.plane_taps / 2 : p.planes;
        dy[s] = tap % TAPS - 1;
        offset[s] = (dz[s] * p.rows + dy[s]) * p.length * p.c + stream % p.c;
      }
      int64_t count = 0;
      for (int64_t r = 0; r < height; ++r) {
        const Place at = places[r];
        const float* x = p.x + at.number * p.length * p.c;
        bool inside = false;
        for (int64_t s = 0; s < STREAMS; ++s) {
          const int64_t z = at.z + dz[s], y = at.y + dy[s];
          const bool here = 0 <= z && z < p.planes && 0 <= y && y < p.rows;
          rows[count].x[s] = here ? x + offset[s] : nothing.get();
          inside |= here;
        }
        rows[count].g = packed.get() + r * padded;
        count += inside;
      }
      multiply(rows.data(), count, p.length, p.c, sums + block * STREAMS * TAPS * WIDTH);
    }
  }
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

using Floats32 = ffi::Buffer<ffi::F32>;

ffi::Error weight_gradient(ffi::ThreadPool pool, Floats32 x, Floats32 g,
                           ffi::ResultBuffer<ffi::F32> result) {
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

  const int64_t vectors = p.vectors(), each = p.sums();
  int64_t parts = std::min((ITEMS + vectors - 1) / vectors, SUMS / (4 * each * vectors));
  parts = std::clamp<int64_t>(parts, 1, p.all_rows());
  const Floats sums = zeros(parts * vectors * each);
  if (!sums) return ffi::Error::Internal("out of memory");
  in_parallel(pool, parts * vectors, [&](int64_t i) {
    const int64_t part = i / vectors;
    add_rows(p, part * p.all_rows() / parts, (part + 1) * p.all_rows() / parts, i % vectors,
             sums.get() + i * each);
  });

  float* const out = result->typed_data();
  in_parallel(pool, p.streams(), [&](int64_t stream) {
    const int64_t tap = stream / p.c, c = stream % p.c;
    for (int64_t i = 0; i < TAPS * vectors; ++i) {
      const int64_t t = i / vectors, vector = i % vectors, channel = vector * WIDTH;
      const float* from = sums.get() + vector * each + (stream * TAPS + t) * WIDTH;
      Vector total{};
      for (int64_t part = 0; part < parts; ++part, from += vectors * each) {
        total += *reinterpret_cast<const Vector*>(from);
      }
      float* to = out + ((tap * TAPS + t) * p.c + c) * p.d + channel;
      std::memcpy(to, &total, 4 * std::min<int64_t>(WIDTH, p.d - channel));
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(WeightGradient, weight_gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
