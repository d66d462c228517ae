// What the recurrent products of a chunk of steps read: h before each step, masked and scaled, as one matrix.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.

// states [rows of the sequence, units]: after each step. h0 [batch, units]: a caller's. operand [chunk.rows, units].
// A GRU's states are unscaled and its h0 is scaled; an LSTM's are what its product reads.
template <bool GRU, class T>
void read_operand(const Parallel& parallel, const Sequence& sequence, const Chunk& chunk,
                  const StateSites<SimdMath<T>>& sites, const StateMasks<T>& masks, const T* states, const T* h0,
                  int64_t units, T* operand) {
  using Math = SimdMath<T>;
  parallel.each(chunk.end - chunk.begin, sequence.batch * units, [&](int64_t begin, int64_t end) {
    for (int64_t s = chunk.begin + begin; s < chunk.begin + end; ++s) {
      const int64_t t = sequence.time(s), continued = sequence.continued_from(t);
      for (int64_t b = 0; b < sequence.active(t); ++b) {
        T* to = operand + (sequence.row(t) + b - chunk.row) * units;
        for (int64_t u = 0; u < units; u += LANES) {
          const int64_t n = units - u;
          Vec<T> h;
          if (b < continued) {
            h = load(states + (sequence.row(sequence.before(t)) + b) * units + u, n);
          } else {
            h = load(h0 + b * units + u, n);
            if (GRU) h = enter<Math>(masks.dead_units(), sites.entry_scale, masks.dead(b, u), h);
          }
          if (GRU) h = sites.read_scale * h;
          store(to + u, masks.hidden(b, u, h), n);
        }
      }
    }
  });
}
