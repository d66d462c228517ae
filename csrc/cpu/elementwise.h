// Dropout of inputs and outputs, and raw words.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.

// A mask that is drawn once per sequence is drawn once per block of steps, and applied to each.
template <class T>
void drop_rows(const DropRows<T>& p) {
  Stopwatch watch;
  const T scale = T(keep_scale(p.threshold));
  const Sequence& sequence = p.sequence;
  const int64_t block = p.per_step ? 1 : 16;
  p.parallel.each(tiles_of(sequence.steps, block), block * sequence.batch * p.width, [&](int64_t begin, int64_t end) {
    const Buffer<int32_t> mask = scratch<int32_t>(tiles_of(p.width, QUAD) * QUAD);  // of one example, -1 where dropped
    for (int64_t t0 = begin * block; t0 < end * block; t0 += block) {
      const int64_t t1 = least(t0 + block, sequence.steps);
      const uint32_t step = p.per_step ? p.step_offset + static_cast<uint32_t>(t0) : SEQ;
      for (int64_t b = 0; b < sequence.active(t0); ++b) {
        const uint32_t example = p.batch_shared ? SEQ : static_cast<uint32_t>(p.example_ids ? p.example_ids[b] : b);
        for (int64_t first = 0; first < p.width; first += QUAD) {
          const VecWords words = quad_words(static_cast<uint32_t>(first), example, step, p.stream, p.key);
          for (int v = 0; v < 4; ++v) store(&mask[first + v * LANES], below(words.w[v], p.threshold));
        }
        for (int64_t t = t0; t < t1 && b < sequence.active(t); ++t) {
          const T* from = p.source + (sequence.row(t) + b) * p.width;
          T* to = p.target + (sequence.row(t) + b) * p.width;
          for (int64_t u = 0; u < p.width; u += LANES) {
            VecI drop;
            __builtin_memcpy(&drop, &mask[u], sizeof drop);
            const int64_t n = p.width - u;
            store(to + u, select(Simd<T>::mask_of(drop), Vec<T>{}, scale * load(from + u, n)), n);
          }
        }
      }
    }
  });
  watch.lap(DROP_ROWS);
}

inline void read_words(const ReadWords& p) {
  const uint32_t kind = p.stream & 0xFF;
  const bool by_unit = kind <= KIND_HIDDEN || kind == KIND_INPUT_UNTIED;
  for (int64_t ic = 0; ic < p.nc; ++ic)
    for (int64_t ib = 0; ib < p.nb; ++ib) {
      const uint32_t b = static_cast<uint32_t>(p.b[ib]), c = static_cast<uint32_t>(p.c[ic]);
      int64_t* target = p.target + (ic * p.nb + ib) * p.units * (by_unit ? 4 : 1);
      const int64_t step = by_unit ? LANES : QUAD;
      for (int64_t unit = 0; unit < p.units; unit += step) {
        const int64_t n = p.units - unit < step ? p.units - unit : step;
        if (by_unit) {
          const VecWords drawn = unit_words(static_cast<uint32_t>(unit), b, c, p.stream, p.key);
          for (int64_t lane = 0; lane < n; ++lane)
            for (int w = 0; w < 4; ++w) target[(unit + lane) * 4 + w] = drawn.w[w][lane];
        } else {
          const VecWords drawn = quad_words(static_cast<uint32_t>(unit), b, c, p.stream, p.key);
          for (int64_t j = 0; j < n; ++j) target[unit + j] = drawn.w[j / LANES][j % LANES];
        }
      }
    }
}
