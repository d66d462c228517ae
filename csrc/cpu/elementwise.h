// What surrounds the recurrence: masked weights, dropout of inputs and outputs, operands and gates for all steps at
// once. No include guard on purpose: once per isa_*.cpp, inside its namespace.

template <class T>
void mask_weight(const MaskWeight<T>& p) {
  const bool by_row = p.masks.flags & FLAG_WEIGHT_ROW;
  const uint64_t threshold = p.masks.thresholds[SITE_WEIGHT_DROPOUT];
  const T scale = T(keep_scale(threshold));
  const uint32_t stream = stream_of(by_row ? KIND_WEIGHT_ROW : p.kind, p.masks.layer, p.masks.direction);
  p.parallel.each(p.rows, p.columns, [&](int64_t begin, int64_t end) {
    uint32_t words[4 * LANES];
    for (int64_t row = begin; row < end; ++row) {
      const T* source = p.source + row * p.columns;
      T* target = p.target + row * p.columns;
      if (by_row) {
        const Words drawn =
            frd::philox(static_cast<uint32_t>(row / 4), p.kind - KIND_WEIGHT_HH, SEQ, stream, p.masks.weight);
        const bool drop = dropped(drawn.w[row % 4], threshold);
        for (int64_t j = 0; j < p.columns; ++j) target[j] = drop ? T(0) : scale * source[j];
        continue;
      }
      for (int64_t first = 0; first < p.columns; first += 4 * LANES) {
        quad_words(static_cast<uint32_t>(first), static_cast<uint32_t>(row), SEQ, stream, p.masks.weight, words);
        const int64_t n = p.columns - first < 4 * LANES ? p.columns - first : 4 * LANES;
        for (int64_t j = 0; j < n; ++j)
          target[first + j] = dropped(words[j], threshold) ? T(0) : scale * source[first + j];
      }
    }
  });
}

template <class T>
void drop_rows(const DropRows<T>& p) {
  const T scale = T(keep_scale(p.threshold));
  const Sequence& sequence = p.sequence;
  p.parallel.each(sequence.steps, sequence.batch * p.width, [&](int64_t begin, int64_t end) {
    uint32_t words[4 * LANES];
    for (int64_t t = begin; t < end; ++t) {
      const uint32_t step = p.per_step ? p.step_offset + static_cast<uint32_t>(t) : SEQ;
      for (int64_t b = 0; b < sequence.active(t); ++b) {
        const uint32_t example = p.batch_shared ? SEQ : static_cast<uint32_t>(p.example_ids ? p.example_ids[b] : b);
        const int64_t at = (sequence.row(t) + b) * p.width;
        for (int64_t first = 0; first < p.width; first += 4 * LANES) {
          quad_words(static_cast<uint32_t>(first), example, step, p.stream, p.key, words);
          const int64_t n = p.width - first < 4 * LANES ? p.width - first : 4 * LANES;
          for (int64_t j = 0; j < n; ++j)
            p.target[at + first + j] = dropped(words[j], p.threshold) ? T(0) : scale * p.source[at + first + j];
        }
      }
    }
  });
}

inline void read_words(const ReadWords& p) {
  const uint32_t kind = p.stream & 0xFF;
  const bool by_unit = kind <= KIND_HIDDEN || kind == KIND_INPUT_UNTIED;
  uint32_t words[4 * LANES];
  for (int64_t ic = 0; ic < p.nc; ++ic)
    for (int64_t ib = 0; ib < p.nb; ++ib) {
      const uint32_t b = static_cast<uint32_t>(p.b[ib]), c = static_cast<uint32_t>(p.c[ic]);
      int64_t* target = p.target + (ic * p.nb + ib) * p.units * (by_unit ? 4 : 1);
      const int64_t step = by_unit ? LANES : 4 * LANES;
      for (int64_t unit = 0; unit < p.units; unit += step) {
        const int64_t n = p.units - unit < step ? p.units - unit : step;
        if (by_unit) {
          const VecWords drawn = unit_words(static_cast<uint32_t>(unit), b, c, p.stream, p.key);
          for (int64_t lane = 0; lane < n; ++lane)
            for (int w = 0; w < 4; ++w) target[(unit + lane) * 4 + w] = drawn.w[w][lane];
        } else {
          quad_words(static_cast<uint32_t>(unit), b, c, p.stream, p.key, words);
          for (int64_t j = 0; j < n; ++j) target[unit + j] = words[j];
        }
      }
    }
}

template <class T>
void read_operand(const ReadOperand<T>& p) {
  using Math = SimdMath<T>;
  const StateSites<Math> sites = state_sites<Math>(p.masks.flags, p.masks.thresholds);
  const StateMasks<T> masks(p.parallel, p.masks, p.sequence.batch, p.units);
  p.parallel.each(p.sequence.steps, p.sequence.batch * p.units, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t continued = p.sequence.continued_from(t);
      for (int64_t b = 0; b < p.sequence.active(t); ++b)
        for (int64_t u = 0; u < p.units; u += LANES) {
          const int64_t n = p.units - u;
          Vec<T> h;
          if (b < continued) {
            h = load(p.states + (p.sequence.row(p.sequence.before(t)) + b) * p.units + u, n);
          } else {
            h = load(p.h0 + b * p.units + u, n);
            if (p.gru) h = enter<Math>(masks.dead_units(), sites.entry_scale, masks.dead(b, u), h);
          }
          if (p.gru) h = sites.read_scale * h;
          store(p.operand + (p.sequence.row(t) + b) * p.units + u, masks.hidden(b, u, h), n);
        }
    }
  });
}

template <class T>
void lstm_activate(const Activate<T>& p) {
  const int64_t H = p.units;
  p.parallel.each(p.rows, 4 * H, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int v = 0; v < 4; ++v)
        for (int64_t u = 0; u < H; u += LANES) {
          const int64_t n = H - u, column = v * H + u, at = row * 4 * H + column;
          Vec<T> a = load(p.gates + at, n) + load(p.recurrent + at, n);
          if (p.b_ih) a += load(p.b_ih + column, n) + load(p.b_hh + column, n);
          store(p.gates + at, v == 2 ? tanh(a) : sigmoid(a), n);
        }
  });
}

template <class T>
void gru_activate(const Activate<T>& p) {
  const int64_t H = p.units;
  p.parallel.each(p.rows, 3 * H, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t u = 0; u < H; u += LANES) {
        const int64_t n = H - u, at = row * 3 * H + u;
        Vec<T> input[3], recurrent[3];
        for (int v = 0; v < 3; ++v) {
          input[v] = load(p.gates + at + v * H, n);
          recurrent[v] = load(p.recurrent + at + v * H, n);
          if (p.b_ih) input[v] += load(p.b_ih + v * H + u, n);
          if (p.b_hh) recurrent[v] += load(p.b_hh + v * H + u, n);
        }
        const Vec<T> r = sigmoid(input[0] + recurrent[0]);
        store(p.gates + at, r, n);
        store(p.gates + at + H, sigmoid(input[1] + recurrent[1]), n);
        store(p.gates + at + 2 * H, tanh(input[2] + r * recurrent[2]), n);
        store(p.resets + row * H + u, recurrent[2], n);
      }
  });
}

// Sums over the rows of a matrix, in blocks, so that long sums keep their precision and no result depends on threads.
template <class T>
void column_sums(const ColumnSums<T>& p) {
  constexpr int64_t block = 64;
  p.parallel.each(tiles_of(p.columns, LANES), p.rows * LANES, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t column = tile * LANES, n = p.columns - column;
      Vec<T> total{};
      for (int64_t first = 0; first < p.rows; first += block) {
        Vec<T> sum{};
        for (int64_t row = first; row < p.rows && row < first + block; ++row)
          sum += load(p.source + row * p.columns + column, n);
        total += sum;
      }
      store(p.target + column, total, n);
    }
  });
}
