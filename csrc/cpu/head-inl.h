// The fused head, a tile of rows at a time.
//
//   z_i = alpha <w_i, x^> / sqrt(N) + b_i,   x^ = x / max(|x|_2, 1e-12)
//
// x is never divided: W x and |x|^2 are computed side by side, and alpha / (|x| sqrt(N)) scales the
// result once. Reads N features and C/8 bytes of signs, writes what the epilogue writes; scratch is
// two rows of n, or one more than a tile has where there are many blocks. Accumulates in float32
// (float64 for float64 features; integer features are exact).
//
// The blocks of a row form chunks, whose partial results the epilogue merges in order. Chunks
// depend on the codebook alone, so a row may be computed on one thread or its chunks on several.
#pragma once

#include "core/problem.h"
#include "cpu/features-inl.h"
#include "epilogues_cpu.h"

namespace fixclf {
namespace {

// All classes of the shard come from one block, which therefore stays in scratch between passes.
FIXCLF_INLINE bool is_resident(const Codebook& cb) { return cb.first_block() == cb.last_block(); }

template <class V>
int64_t tile_scratch(const HeadProblem& p) {
  return row_stride<V>(p.codebook, p.x.dtype) * (is_resident(p.codebook) ? 2 : kRowTile + 1);
}

// The blocks of the shard in chunks of at least 2^15 classes, 32 chunks at most: so much work as is
// worth a thread, and states that stay small.
struct Chunks {
  int64_t begin, end, size, count;

  explicit Chunks(const Codebook& cb) : begin(cb.first_block()), end(cb.last_block() + 1) {
    constexpr int64_t kClasses = int64_t{1} << 15, kCount = 32;
    size = (kClasses + cb.rows_per_block() - 1) / cb.rows_per_block();
    const int64_t least = (end - begin + kCount - 1) / kCount;
    if (size < least) size = least;
    count = (end - begin + size - 1) / size;
  }
  int64_t first(int64_t chunk) const { return begin + chunk * size; }
  int64_t last(int64_t chunk) const {
    const int64_t after = begin + (chunk + 1) * size;
    return (after < end ? after : end) - 1;
  }
};

// The first class of the shard that lies in the block or after it.
FIXCLF_INLINE int64_t class_of(const Codebook& cb, int64_t block) {
  const int64_t first = cb.class_at(block), classes = cb.computed();
  return first < 0 ? 0 : first < classes ? first : classes;
}

// Whether the mask has a bit among [first, first + count).
FIXCLF_INLINE bool any_allowed(const uint8_t* allowed, int64_t first, int64_t count) {
  const int64_t last = first + count - 1;
  if (first / 8 == last / 8)
    return (allowed[first / 8] >> first % 8 & ((2 << (last - first)) - 1)) != 0;
  if (allowed[first / 8] >> first % 8 != 0) return true;
  for (int64_t byte = first / 8 + 1; byte < last / 8; ++byte)
    if (allowed[byte] != 0) return true;
  return (allowed[last / 8] & ((2 << last % 8) - 1)) != 0;
}

// Rows [row, row + count), count <= kRowTile, on one thread. Several blocks: the rows share each
// block's signs and biases while these are in the L1 cache. One block: a tile is one row.
template <class V, class Epilogue, Addend kAddend>
class HeadTile {
 public:
  using Real = typename V::Real;

  HeadTile(const HeadProblem& p, void* scratch)
      : p_(p),
        loader_{p},
        resident_(is_resident(p.codebook)),
        row_stride_(row_stride<V>(p.codebook, p.x.dtype)),
        y_(static_cast<Real*>(scratch)),
        staged_(y_ + row_stride_),
        open_(loader_.joined && resident_ && !p.codebook.negate && !p.codebook.center &&
              p.codebook.row_offset + p.codebook.class_begin < V::kWidth && Epilogue::kReadsOnce) {}

  static int64_t tile(const HeadProblem& p) { return is_resident(p.codebook) ? 1 : kRowTile; }
  static int passes(const HeadProblem& p) { return Epilogue::passes(is_resident(p.codebook)); }

  // Reads the features of row `row`, the t-th of the tile; false where not all are finite.
  FIXCLF_INLINE bool load(int64_t row, int t) {
    rows_[t] = row;
    scales_[t] = loader_.load(row, staged_ + t * row_stride_, y_, open_);
    return scales_[t] == scales_[t];
  }

  // One pass over the blocks [first, last]; rows whose epilogue is null take no part.
  void add_blocks(int pass, int64_t first, int64_t last, int count, Epilogue* const* epilogues) {
    for (int64_t block = first; block <= last; ++block)
      for (int t = 0; t < count; ++t)
        if (epilogues[t] != nullptr) add_block(pass, block, t, *epilogues[t]);
  }

 private:
  FIXCLF_INLINE void add_block(int pass, int64_t block, int t, Epilogue& epilogue) {
    const Codebook& cb = p_.codebook;
    Real* a = staged_ + t * row_stride_;
    const uint8_t* allowed = nullptr;
    if (kAddend == kMasked) {
      allowed = p_.allowed_of(rows_[t]);
      bool any = epilogue.needs_forbidden();
      for_segments(cb, block, [&](int64_t first_class, int, int64_t, int64_t classes) {
        any = any || any_allowed(allowed, first_class, classes);
      });
      if (!any) return;
    }
    if (pass == 0 || !resident_) {
      if (!loader_.direct) block_rows<V>(cb, block, rows_needed(cb, block), a, y_);
      if (cb.center) stretch_ = center<V>(cb, y_);
    }
    Segment<V, kAddend> segments[2];
    int parts = 0;
    for_segments(cb, block, [&](int64_t first_class, int sign, int64_t row0, int64_t classes) {
      Segment<V, kAddend>& segment = segments[parts];
      segment.y = y_ + row0;
      segment.scale = static_cast<Real>(sign * stretch_ * scales_[t]);
      segment.bias = p_.has_bias ? static_cast<const Real*>(p_.bias) + first_class : nullptr;
      segment.allowed = allowed;
      segment.allowed_bits = cb.computed();
      segment.first_class = first_class;
      segment.count = classes;
      segment.codelet = open_ ? loader_.codelet : -1;
      segment.first_row = row0;
      segment.spare = !resident_ ? nullptr : parts == 0 ? segment.y : a;
      ++parts;
    });
    for (int i = 0; i < parts; ++i)
      epilogue.segment(pass, segments[Epilogue::kBackwards ? parts - 1 - i : i]);
  }

  const HeadProblem& p_;
  const RowLoader<V> loader_;
  const bool resident_;
  const int64_t row_stride_;
  Real* const y_;
  Real* const staged_;
  const bool open_;  // the epilogue does the codelets of the transform
  double stretch_ = 1;
  int64_t rows_[kRowTile];
  Real scales_[kRowTile];
};

// The entry points of one epilogue.
template <class V, class Epilogue, Addend kAddend>
struct Head {
  using Real = typename V::Real;
  using Tile = HeadTile<V, Epilogue, kAddend>;

  static int64_t own_scratch(const HeadProblem& p) { return round_up(Epilogue::scratch(p), 64); }

  static int64_t scratch(const HeadProblem& p) {
    return round_up(tile_scratch<V>(p) * static_cast<int64_t>(sizeof(Real)), 64) +
           Tile::tile(p) * own_scratch(p);
  }

  // Rows [begin, end), whole.
  static void rows(const HeadProblem& p, int64_t begin, int64_t end, void* scratch) {
    Tile tile(p, scratch);
    char* scratches = static_cast<char*>(scratch) +
                      round_up(tile_scratch<V>(p) * static_cast<int64_t>(sizeof(Real)), 64);
    const Chunks chunks(p.codebook);
    const int64_t step = Tile::tile(p), classes = p.codebook.computed();
    const bool suspect = Epilogue::kTakesNaN && may_hold_nan<V>(p, 0, classes);
    for (int64_t row = begin; row < end; row += step) {
      const int count = static_cast<int>(end - row < step ? end - row : step);
      Epilogue objects[kRowTile];
      Epilogue* epilogues[kRowTile];
      for (int t = 0; t < count; ++t) {
        const bool live =
            objects[t].start(p, row + t, scratches + t * own_scratch(p)) && tile.load(row + t, t);
        if (suspect) take_nan(p, row + t, 0, classes, objects[t]);
        epilogues[t] = live ? &objects[t] : nullptr;
      }
      for (int pass = 0; pass < Tile::passes(p); ++pass) {
        for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
          tile.add_blocks(pass, chunks.first(chunk), chunks.last(chunk), count, epilogues);
          for (int t = 0; t < count; ++t)
            if (epilogues[t] != nullptr) epilogues[t]->end_chunk();
        }
      }
      for (int t = 0; t < count; ++t) close(epilogues[t] != nullptr, objects[t]);
    }
  }

  // A row's result after one chunk.
  struct State {
    Epilogue epilogue;
    bool live;
  };
  static int64_t state_bytes(const HeadProblem& p) {
    return round_up(static_cast<int64_t>(sizeof(State)), 64) + own_scratch(p);
  }
  static State& state(const HeadProblem& p, int64_t chunk, int t, char* states) {
    return *reinterpret_cast<State*>(states +
                                     (t * Chunks(p.codebook).count + chunk) * state_bytes(p));
  }

  // One pass over the chunks [begin, end) of rows [row, row + count), into `states`.
  static void chunks(const HeadProblem& p, int64_t row, int count, int pass, int64_t begin,
                     int64_t end, char* states, void* scratch) {
    Tile tile(p, scratch);
    const Chunks chunks(p.codebook);
    Epilogue objects[kRowTile];
    Epilogue* epilogues[kRowTile];
    for (int t = 0; t < count; ++t) {
      if (pass > 0) {
        const State& merged = state(p, 0, t, states);
        objects[t] = merged.epilogue;
        epilogues[t] = merged.live && tile.load(row + t, t) ? &objects[t] : nullptr;
        continue;
      }
      const bool finite = tile.load(row + t, t);
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        State& mine = state(p, chunk, t, states);
        mine.epilogue = Epilogue();
        mine.live =
            mine.epilogue.start(p, row + t,
                                reinterpret_cast<char*>(&mine) + state_bytes(p) - own_scratch(p)) &&
            finite;
      }
    }
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = class_of(p.codebook, chunks.first(chunk));
      const int64_t after = class_of(p.codebook, chunks.last(chunk) + 1);
      const bool suspect = Epilogue::kTakesNaN && pass == 0 && may_hold_nan<V>(p, first, after);
      for (int t = 0; t < count && pass == 0; ++t) {
        State& mine = state(p, chunk, t, states);
        if (suspect) take_nan(p, row + t, first, after, mine.epilogue);
        epilogues[t] = mine.live ? &mine.epilogue : nullptr;
        if (chunk > begin) mine.epilogue.follow(state(p, chunk - 1, t, states).epilogue);
      }
      tile.add_blocks(pass, chunks.first(chunk), chunks.last(chunk), count, epilogues);
      for (int t = 0; t < count; ++t)
        if (epilogues[t] != nullptr) epilogues[t]->end_chunk();
    }
  }

  // Joins the states of a pass, in order; after the last pass the results are written.
  static void merge(const HeadProblem& p, int count, int pass, char* states) {
    for (int t = 0; t < count; ++t) {
      State& merged = state(p, 0, t, states);
      for (int64_t chunk = 1; chunk < Chunks(p.codebook).count && pass == 0; ++chunk)
        if (merged.live) merged.epilogue.merge(state(p, chunk, t, states).epilogue);
      if (pass + 1 == Tile::passes(p)) close(merged.live, merged.epilogue);
    }
  }

 private:
  static void take_nan(const HeadProblem& p, int64_t row, int64_t begin, int64_t end,
                       Epilogue& epilogue) {
    const int64_t id = first_nan<V>(p, row, begin, end);
    if (id < end) epilogue.take_nan(id);
  }
  static FIXCLF_INLINE void close(bool live, Epilogue& epilogue) {
    if (live) {
      epilogue.finish();
    } else {
      epilogue.invalid(static_cast<Real>(__builtin_nan("")));
    }
  }
};

}  // namespace
}  // namespace fixclf
