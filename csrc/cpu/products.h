// The products over many steps: W x before them, and the gradients of x and of the weights after them.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.
//
// They run over a chunk of steps at a time, whose operands stay in the caches between a product and the recurrence.

// Calls body(tile, begin, end) so that all of [0, tiles) x [0, rows) is covered; rows are cut where tiles are too few.
template <class Body>
void each_tile(const Parallel& parallel, int64_t tiles, int64_t rows, int64_t work, Body&& body) {
  if (tiles == 0 || rows == 0) return;
  const int64_t wanted = 4 * int64_t{parallel.threads}, most = tiles_of(rows, 16);
  const int64_t parts = tiles >= wanted ? 1 : least(tiles_of(wanted, tiles), most);
  parallel.each(tiles * parts, tiles_of(rows, parts) * work, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tile = i / parts, part = i % parts;
      body(tile, rows * part / parts, rows * (part + 1) / parts);
    }
  });
}

// gates[row] = bias + W x[row], for `rows` rows. w as pack_gates<NV> leaves it; bias [NV * units], or null.
template <int NV, class T>
void input_product(const Parallel& parallel, const T* x, int64_t rows, int64_t inputs, const T* w, const T* bias,
                   int64_t units, T* gates) {
  each_tile(parallel, tiles_of(units, LANES), rows, NV * LANES * inputs, [&](int64_t tile, int64_t begin, int64_t end) {
    const int64_t u = tile * LANES, n = units - u;
    Vec<T> start[NV];
    for (int v = 0; v < NV; ++v) start[v] = bias ? load(bias + v * units + u, n) : Vec<T>{};
    product<NV>(
        begin, end, [&](int64_t row) { return x + row * inputs; }, w + u * inputs * NV, inputs,
        [&](int64_t row, const Vec<T>* sums) {
          for (int v = 0; v < NV; ++v) store(gates + (row * NV + v) * units + u, start[v] + sums[v], n);
        });
  });
}

// The gradient of a layer's input: dx[row] = dgates[row][0..k) * W, for `rows` rows of `stride` numbers.
template <class T>
void input_gradient(const Parallel& parallel, const T* dgates, int64_t rows, int64_t stride, int64_t k,
                    const Columns& layout, const T* w, T* dx, int64_t inputs) {
  each_tile(parallel, layout.tiles, rows, 4 * LANES * k, [&](int64_t tile, int64_t begin, int64_t end) {
    product(
        layout, tile, begin, end, [&](int64_t row) { return dgates + row * stride; }, w, k,
        [&](int64_t row, int64_t column, Vec<T> sum) { store(dx + row * inputs + column, sum, inputs - column); });
  });
}

// The gradient of a weight [rows, columns], summed over chunks of steps.
template <class T>
class WeightGradient {
 public:
  // target: null where nobody asks for it. most: the rows of the largest chunk.
  WeightGradient(const Parallel& parallel, T* target, int64_t rows, int64_t columns, int64_t most)
      : parallel_(parallel),
        target_(target),
        rows_(rows),
        columns_(columns),
        layout_(columns, 1),
        packed_(scratch<T>(target ? layout_.vectors * LANES * most : 0)) {}

  bool wanted() const { return target_; }

  // left(row): k numbers, one for each row of right [k, columns].
  template <class Left>
  void add(Left&& left, const T* right, int64_t k) {
    if (!target_) return;
    pack_columns(parallel_, layout_, Plain<T>{right, k, columns_}, k, [](int64_t kk) { return kk; }, packed_.get());
    each_tile(parallel_, layout_.tiles, rows_, 4 * LANES * k, [&](int64_t tile, int64_t begin, int64_t end) {
      product(layout_, tile, begin, end, left, packed_.get(), k, [&](int64_t row, int64_t column, Vec<T> sum) {
        T* to = target_ + row * columns_ + column;
        store(to, started_ ? load(to, columns_ - column) + sum : sum, columns_ - column);
      });
    });
    started_ = true;
  }

 private:
  const Parallel& parallel_;
  T* const target_;
  const int64_t rows_, columns_;
  const Columns layout_;
  Buffer<T> packed_;
  bool started_ = false;
};

// target[row] (+)= the sum of the k numbers at left(row).
template <class T, class Left>
void add_row_sums(const Parallel& parallel, Left&& left, int64_t rows, int64_t k, bool first, T* target) {
  parallel.each(rows, k, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = left(row);
      Vec<T> sums{};
      for (int64_t kk = 0; kk < k; kk += LANES) sums += load(from + kk, k - kk);
      T total = 0;
      for (int lane = 0; lane < LANES; ++lane) total += sums[lane];
      target[row] = first ? total : target[row] + total;
    }
  });
}
