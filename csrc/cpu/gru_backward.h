// GRU (reset after the recurrent product), backward: the mirror image of the forward pass. See lstm_backward.h.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.
//
// W x and U h have the gradients of r and z in common and their own of n, so that a row of gradients holds four: n at
// W x, r, z, n at U h. The first three are what goes back through W, the last three what goes back through U.

template <class T>
class GruBackwardPass {
  using V = Vec<T>;
  using Math = SimdMath<T>;
  static constexpr int NV = 3;

 public:
  explicit GruBackwardPass(const GruBackward<T>& p)
      : p_(p),
        H_(p.units),
        B_(p.sequence.batch),
        most_(chunk_rows<T>(p.sequence, WIDE * H_, !p.gates)),
        largest_(largest_chunk(p.sequence, most_)),
        groups_(groups_for(p.parallel, tiles_of(H_, LANES), 6.0 * B_ * H_ * H_)),
        sites_(state_sites<Math>(p.masks.flags, p.masks.thresholds)),
        masks_(p.parallel, p.masks, B_, H_),
        bias_(p.b_ih, p.b_hh, H_),
        m_ih_(p.w_ih, NV * H_, p.inputs, FLAG_WEIGHT_IH, KIND_WEIGHT_IH, p.masks),
        m_hh_(p.w_hh, NV * H_, H_, FLAG_WEIGHT_HH, KIND_WEIGHT_HH, p.masks),
        of_h_(H_, groups_),
        w_hh_(pack_columns<T>(p.parallel, of_h_, m_hh_, NV * H_)),
        dgates_(scratch<T>(largest_ * WIDE * H_)),
        later_(scratch<T>(B_ * NV * H_)),
        dh_(scratch<T>(B_ * H_)),
        operand_(scratch<T>(p.dw_hh || !p.gates ? largest_ * H_ : 0)),
        dw_ih_(p.parallel, p.dw_ih, p.inputs, largest_),
        dw_hh_(p.parallel, p.dw_hh, H_, largest_),
        resets_again_(scratch<T>(p.gates ? 0 : largest_ * H_)),
        again_(p.gates ? nullptr : new GatesAgain<NV, T>(p, m_ih_, m_hh_, bias_.with_input(), largest_)) {
    // n comes first in a row of gradients and last in W.
    if (p.dx) w_ih_.reset(new ColumnTiles<T>(p.parallel, m_ih_, 2 * H_, packing_of_dx(p, m_ih_, most_)));
    // A caller's h_n is the state times read_scale.
    for (int64_t i = 0; i < B_ * H_; ++i) dh_[i] = p.dh_n ? sites_.read_scale * p.dh_n[i] : T(0);
  }

  void run() {
    Stopwatch watch;
    for (int64_t end = p_.sequence.steps; end > 0; end = chunk_.begin) {
      chunk_ = Chunk::upto(p_.sequence, end, most_);
      if (p_.dw_hh || !p_.gates)
        read_operand<true>(p_.parallel, p_.sequence, chunk_, sites_, masks_, p_.states, p_.h0, H_, operand_.get());
      gates_ = p_.gates ? p_.gates + chunk_.row * NV * H_ : activated();
      resets_ = p_.gates ? p_.resets + chunk_.row * H_ : resets_again_.get();
      watch.lap(INPUT_PRODUCT);
      steps();
      watch.restart();
      add_gradients();
      watch.lap(GRADIENTS);
      const int64_t t = p_.sequence.time(chunk_.begin);
      for (int64_t b = 0; b < p_.sequence.active(t); ++b)
        std::memcpy(&later_[b * NV * H_], dgates(t, b) + H_, NV * H_ * sizeof(T));
    }
    leave();
    if (p_.dw_ih) mask_gradient(p_.parallel, m_ih_, p_.dw_ih);
    if (p_.dw_hh) mask_gradient(p_.parallel, m_hh_, p_.dw_hh);
    watch.lap(GRADIENTS);
  }

 private:
  static constexpr int WIDE = 4;  // gradients of a unit in a row

  bool weights_wanted() const { return p_.dw_ih || p_.dw_hh || p_.db_ih; }
  int64_t row_in_chunk(int64_t t, int64_t b) const { return p_.sequence.row(t) + b - chunk_.row; }
  T* dgates(int64_t t, int64_t b) const { return &dgates_[row_in_chunk(t, b) * WIDE * H_]; }

  // Activated gates of a chunk whose forward kept none.
  const T* activated() {
    return again_->run(chunk_, operand_.get(), [this](int64_t row, int64_t u, T* gates, const V* sums) {
      const int64_t n = H_ - u;
      const V reset = sums[2] + bias_.of_n(u, n), r = Math::sigmoid(load(gates, n) + sums[0]);
      store(gates, r, n);
      store(gates + H_, Math::sigmoid(load(gates + H_, n) + sums[1]), n);
      store(gates + 2 * H_, Math::tanh(load(gates + 2 * H_, n) + r * reset), n);
      store(&resets_again_[row * H_ + u], reset, n);
    });
  }

  void steps() {
    Team(p_.parallel, chunk_.end - chunk_.begin, groups_).run([&](int64_t step, int group) {
      const int64_t s = chunk_.end - 1 - step;
      for (int64_t tile = share(of_h_.tiles, group, groups_); tile < share(of_h_.tiles, group + 1, groups_); ++tile)
        hidden(s, p_.sequence.time(s), tile);
    });
  }

  // The state's gradient from what the recurrent product's operand got.
  V through(int64_t b, int64_t u, V sum) const { return sites_.read_scale * masks_.hidden(b, u, sum); }

  void hidden(int64_t s, int64_t t, int64_t tile) {
    const int64_t after = p_.sequence.after(t), active = p_.sequence.active(t);
    const int64_t sent = p_.sequence.exists(after) ? p_.sequence.active(after) : 0;
    const bool held = chunk_.contains(s + 1);
    const T* from = held ? dgates(after, 0) + H_ : later_.get();
    const int64_t stride = (held ? WIDE : NV) * H_;
    product(
        of_h_, tile, 0, sent, [&](int64_t b) { return from + b * stride; }, &w_hh_[of_h_.start(tile, NV * H_)], NV * H_,
        [&](int64_t b, int64_t u, int64_t n) { fetch(t, b, u, n); },
        [&](int64_t b, int64_t u, V sum) { b < active ? at_h(t, b, u, sum) : leave_h(b, u, sum); });
    for (int64_t b = sent; b < active; ++b)
      for (int64_t v = of_h_.first(tile); v < of_h_.first(tile + 1); ++v) at_h(t, b, v * LANES, V{});
  }

  // What the cell at n units will read, which the forward left in memory long ago, and where it will write.
  void fetch(int64_t t, int64_t b, int64_t u, int64_t n) const {
    const int64_t row = p_.sequence.row(t) + b, before = p_.sequence.before(t);
    const T* gates = gates_ + (row - chunk_.row) * NV * H_ + u;
    for (int v = 0; v < NV; ++v) prefetch(gates + v * H_, n);
    for (int v = 0; v < WIDE; ++v) prefetch<true>(dgates(t, b) + v * H_ + u, n);
    prefetch(resets_ + (row - chunk_.row) * H_ + u, n);
    if (p_.sequence.exists(before)) prefetch(p_.states + (p_.sequence.row(before) + b) * H_ + u, n);
    if (p_.dout) prefetch(p_.dout + row * H_ + u, n);
  }

  void at_h(int64_t t, int64_t b, int64_t u, V sum) {
    const int64_t n = H_ - u, row = row_in_chunk(t, b);
    const Drops<Math> drops = masks_.drops(b, u, t);
    const V dout = p_.dout ? sites_.read_scale * load(p_.dout + (p_.sequence.row(t) + b) * H_ + u, n) : V{};
    T* carried = &dh_[b * H_ + u];
    V dh = load(carried, n) + through(b, u, sum);
    if (!sites_.unzoned) dh += dout;
    V dh_new = Zone<Math>::to_new(sites_.zone_h, drops.zone_h, dh);
    if (sites_.unzoned) dh_new += dout;
    const T* gates = gates_ + row * NV * H_ + u;
    GruGates<Math> g{load(gates, n), load(gates + H_, n), load(gates + 2 * H_, n), load(resets_ + row * H_ + u, n)};
    const V leak = gru_backward<Math>(sites_, drops, g, state_before(t, b, u), dh_new);
    store(carried, Zone<Math>::to_old(sites_.zone_h, drops.zone_h, dh) + leak, n);
    T* to = dgates(t, b) + u;
    store(to, g.n, n);
    store(to + H_, g.r, n);
    store(to + 2 * H_, g.z, n);
    store(to + 3 * H_, g.u, n);
  }

  V state_before(int64_t t, int64_t b, int64_t u) const {
    const int64_t n = H_ - u;
    if (b < p_.sequence.continued_from(t))
      return load(p_.states + (p_.sequence.row(p_.sequence.before(t)) + b) * H_ + u, n);
    return enter<Math>(masks_.dead_units(), sites_.entry_scale, masks_.dead(b, u), load(p_.h0 + b * H_ + u, n));
  }

  void add_gradients() {
    const int64_t rows = chunk_.rows;
    if (p_.dx) input_gradient(p_.parallel, dgates_.get(), rows, WIDE * H_, *w_ih_, p_.dx + chunk_.row * p_.inputs);
    if (!weights_wanted()) return;
    dw_ih_.chunk(p_.x + chunk_.row * p_.inputs, rows);
    dw_hh_.chunk(operand_.get(), rows);
    add_weight_gradients<T>(
        p_.parallel, dgates_.get(), rows, WIDE * H_, WIDE * H_, H_, chunk_.end == p_.sequence.steps,
        {{&dw_ih_, p_.db_ih, 0, H_, 2 * H_}, {&dw_ih_, p_.db_ih, H_, 3 * H_, 0}, {&dw_hh_, p_.db_hh, H_, 4 * H_, 0}});
  }

  // From the gates of the first step to the caller's h_0.
  void leave() {
    const int64_t n = p_.sequence.active(p_.sequence.time(0));
    p_.parallel.each(of_h_.tiles, NV * H_ * H_, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile)
        product(
            of_h_, tile, 0, n, [&](int64_t b) { return &later_[b * NV * H_]; }, &w_hh_[of_h_.start(tile, NV * H_)],
            NV * H_, [&](int64_t b, int64_t u, V sum) { leave_h(b, u, sum); });
    });
  }
  void leave_h(int64_t b, int64_t u, V sum) {
    const int64_t n = H_ - u;
    const V dh = load(&dh_[b * H_ + u], n) + through(b, u, sum);
    store(p_.dh0 + b * H_ + u, enter<Math>(masks_.dead_units(), sites_.entry_scale, masks_.dead(b, u), dh), n);
  }

  const GruBackward<T>& p_;
  const int64_t H_, B_, most_, largest_;
  const int groups_;
  const StateSites<Math> sites_;
  const StateMasks<T> masks_;
  const GruBias<T> bias_;
  const MaskedWeight<T> m_ih_, m_hh_;
  const Columns of_h_;
  Buffer<T> w_hh_;
  std::unique_ptr<ColumnTiles<T>> w_ih_;  // where dx is wanted
  Buffer<T> dgates_;                      // [rows of a chunk, 4H]: gradients at the pre-activations, n, r, z, and u
  Buffer<T> later_;                       // [B, 3H]: r, z and u of the step after the chunk
  Buffer<T> dh_;                          // [B, H]: carried from step to step; each unit is touched by its owner alone
  Buffer<T> operand_;                     // [rows of a chunk, H]: what the recurrent product read
  WeightGradient<T> dw_ih_, dw_hh_;
  Buffer<T> resets_again_;                    // [rows of a chunk, H]
  std::unique_ptr<GatesAgain<NV, T>> again_;  // where the forward kept no gates
  Chunk chunk_{};
  const T *gates_ = nullptr, *resets_ = nullptr;  // of the chunk, activated
};
