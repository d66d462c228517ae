// LSTM, backward: the mirror image of the forward pass, a chunk of steps at a time. What a chunk adds to the gradients
// of x and of the weights is left to products over all its steps.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.

template <class T>
class LstmBackwardPass {
  using V = Vec<T>;
  using Math = SimdMath<T>;
  static constexpr int NV = 4;

 public:
  explicit LstmBackwardPass(const LstmBackward<T>& p)
      : p_(p),
        H_(p.units),
        P_(p.projected),
        B_(p.sequence.batch),
        most_(chunk_rows<T>(p.sequence, NV * H_, !p.gates)),
        largest_(largest_chunk(p.sequence, most_)),
        groups_(groups_for(p.parallel, tiles_of(P_, LANES), 8.0 * B_ * H_ * P_)),
        sites_(state_sites<Math>(p.masks.flags, p.masks.thresholds)),
        masks_(p.parallel, p.masks, B_, H_),
        m_ih_(p.w_ih, NV * H_, p.inputs, FLAG_WEIGHT_IH, KIND_WEIGHT_IH, p.masks),
        m_hh_(p.w_hh, NV * H_, P_, FLAG_WEIGHT_HH, KIND_WEIGHT_HH, p.masks),
        m_hr_(p.w_hr, p.w_hr ? P_ : 0, H_, FLAG_WEIGHT_HR, KIND_WEIGHT_HR, p.masks),
        of_h_(P_, groups_),
        of_outputs_(H_, groups_),
        w_hh_(pack_columns<T>(p.parallel, of_h_, m_hh_, NV * H_)),
        w_hr_(nullptr, nullptr),
        dgates_(scratch<T>(p.gates ? largest_ * NV * H_ : 0)),
        later_(scratch<T>(B_ * NV * H_)),
        dh_(scratch<T>(B_ * P_)),
        dc_(scratch<T>(B_ * H_)),
        operand_(scratch<T>(p.dw_hh || !p.gates ? largest_ * P_ : 0)),
        dprojected_(scratch<T>(p.w_hr ? largest_ * P_ : 0)),
        outputs_(scratch<T>(p.w_hr ? largest_ * H_ : 0)),
        dw_ih_(p.parallel, p.dw_ih, p.inputs, largest_),
        dw_hh_(p.parallel, p.dw_hh, P_, largest_),
        dw_hr_(p.parallel, p.dw_hr, H_, largest_),
        bias_(scratch<T>(p.gates ? 0 : NV * H_)),
        again_(p.gates ? nullptr : new GatesAgain<NV, T>(p, m_ih_, m_hh_, bias_.get(), largest_)) {
    for (int64_t i = 0; !p.gates && i < NV * H_; ++i) bias_[i] = p.b_ih ? p.b_ih[i] + p.b_hh[i] : T(0);
    if (p.dx) w_ih_.reset(new ColumnTiles<T>(p.parallel, m_ih_, 0, packing_of_dx(p, m_ih_, most_)));
    if (p.w_hr) w_hr_ = pack_columns<T>(p.parallel, of_outputs_, m_hr_, P_);
    for (int64_t i = 0; i < B_ * P_; ++i) dh_[i] = p.dh_n ? p.dh_n[i] : T(0);
    for (int64_t i = 0; i < B_ * H_; ++i) dc_[i] = p.dc_n ? p.dc_n[i] : T(0);
  }

  void run() {
    Stopwatch watch;
    for (int64_t end = p_.sequence.steps; end > 0; end = chunk_.begin) {
      chunk_ = Chunk::upto(p_.sequence, end, most_);
      if (operand_wanted())
        read_operand<false>(p_.parallel, p_.sequence, chunk_, sites_, masks_, p_.states, p_.h0, P_, operand_.get());
      // Gates that were computed again are not read again: their gradients take their place.
      gradients_ = p_.gates ? dgates_.get() : activated();
      gates_ = p_.gates ? p_.gates + chunk_.row * NV * H_ : gradients_;
      watch.lap(INPUT_PRODUCT);
      steps();
      watch.restart();
      add_gradients();
      watch.lap(GRADIENTS);
      const int64_t t = p_.sequence.time(chunk_.begin), n = p_.sequence.active(t) * NV * H_;
      std::memcpy(later_.get(), dgates(t, 0), n * sizeof(T));
    }
    leave();
    mask_gradients();
    watch.lap(GRADIENTS);
  }

 private:
  bool operand_wanted() const { return p_.dw_hh || !p_.gates; }
  int64_t row_in_chunk(int64_t t, int64_t b) const { return p_.sequence.row(t) + b - chunk_.row; }
  T* dgates(int64_t t, int64_t b) const { return gradients_ + row_in_chunk(t, b) * NV * H_; }

  // Activated gates of a chunk whose forward kept none.
  T* activated() {
    const int64_t H = H_;
    return again_->run(chunk_, operand_.get(), [H](int64_t, int64_t u, T* gates, const V* sums) {
      const int64_t n = H - u;
      for (int v = 0; v < NV; ++v) {
        const V a = load(gates + v * H, n) + sums[v];
        store(gates + v * H, v == 2 ? Math::tanh(a) : Math::sigmoid(a), n);
      }
    });
  }

  void steps() {
    const int64_t phases = p_.w_hr ? 2 : 1;
    Team(p_.parallel, (chunk_.end - chunk_.begin) * phases, groups_).run([&](int64_t step, int group) {
      const int64_t s = chunk_.end - 1 - step / phases, t = p_.sequence.time(s);
      const Columns& columns = step % phases == 0 ? of_h_ : of_outputs_;
      for (int64_t i = share(columns.tiles, group, groups_); i < share(columns.tiles, group + 1, groups_); ++i)
        step % phases == 0 ? hidden(s, t, i) : projected(t, i);
    });
  }

  // One tile of h at step s. The step after sends its gradient through U; rows that have no such step get none, and
  // rows that end in the step after, which only a reversed packed batch has, leave for h_0.
  void hidden(int64_t s, int64_t t, int64_t tile) {
    const int64_t after = p_.sequence.after(t), active = p_.sequence.active(t);
    const int64_t sent = p_.sequence.exists(after) ? p_.sequence.active(after) : 0;
    const T* from = chunk_.contains(s + 1) ? dgates(after, 0) : later_.get();
    product(
        of_h_, tile, 0, sent, [&](int64_t b) { return from + b * NV * H_; }, &w_hh_[of_h_.start(tile, NV * H_)],
        NV * H_, [&](int64_t b, int64_t u, int64_t n) { fetch(t, b, u, n); },
        [&](int64_t b, int64_t u, V sum) { b < active ? at_h(t, b, u, sum) : leave_h(b, u, sum); });
    for (int64_t b = sent; b < active; ++b)
      for (int64_t v = of_h_.first(tile); v < of_h_.first(tile + 1); ++v) at_h(t, b, v * LANES, V{});
  }

  // What the cell at n units will read, which the forward left in memory long ago, and where it will write.
  void fetch(int64_t t, int64_t b, int64_t u, int64_t n) const {
    const int64_t row = p_.sequence.row(t) + b, before = p_.sequence.before(t);
    const T* gates = gates_ + (row - chunk_.row) * NV * H_ + u;
    for (int v = 0; v < NV; ++v) {
      prefetch(gates + v * H_, n);
      prefetch<true>(dgates(t, b) + v * H_ + u, n);  // another thread may hold its lines from the last chunk
    }
    if (p_.sequence.exists(before)) prefetch(p_.cells + (p_.sequence.row(before) + b) * H_ + u, n);
    if (p_.dout) prefetch(p_.dout + row * P_ + u, n);
  }

  // Gradients at LANES units of h_t.
  void at_h(int64_t t, int64_t b, int64_t u, V through_u) {
    const int64_t n = P_ - u;
    const Drops<Math> drops = masks_.drops(b, u, t);
    const V dout = p_.dout ? load(p_.dout + (p_.sequence.row(t) + b) * P_ + u, n) : V{};
    T* carried = &dh_[b * P_ + u];
    V dh = load(carried, n) + masks_.hidden(b, u, through_u);
    if (!sites_.unzoned) dh += dout;
    V dh_new = Zone<Math>::to_new(sites_.zone_h, drops.zone_h, dh);
    if (sites_.unzoned) dh_new += dout;
    store(carried, Zone<Math>::to_old(sites_.zone_h, drops.zone_h, dh), n);
    if (p_.w_hr) {
      store(&dprojected_[row_in_chunk(t, b) * P_ + u], dh_new, n);
    } else {
      at_gates(t, b, u, drops, dh_new);
    }
  }

  // With a projection: the gradient at one tile of what it reads.
  void projected(int64_t t, int64_t tile) {
    const T* from = &dprojected_[row_in_chunk(t, 0) * P_];
    product(
        of_outputs_, tile, 0, p_.sequence.active(t), [&](int64_t b) { return from + b * P_; },
        &w_hr_[of_outputs_.start(tile, P_)], P_,
        [&](int64_t b, int64_t u, V sum) { at_gates(t, b, u, masks_.drops(b, u, t), sum); });
  }

  void at_gates(int64_t t, int64_t b, int64_t u, const Drops<Math>& drops, V dh_new) {
    const int64_t n = H_ - u, row = row_in_chunk(t, b);
    const T* gates = gates_ + row * NV * H_ + u;
    LstmGates<Math> g{load(gates, n), load(gates + H_, n), load(gates + 2 * H_, n), load(gates + 3 * H_, n)};
    const V c_prev = cell_before(t, b, u);
    if (p_.w_hr) store(&outputs_[row * H_ + u], lstm_output<Math>(sites_, drops, g, c_prev), n);
    V dc = load(&dc_[b * H_ + u], n);
    lstm_backward<Math>(sites_, drops, g, c_prev, dh_new, dc);
    store(&dc_[b * H_ + u], dc, n);
    T* to = dgates(t, b) + u;
    store(to, g.i, n);
    store(to + H_, g.f, n);
    store(to + 2 * H_, g.g, n);
    store(to + 3 * H_, g.o, n);
  }

  V cell_before(int64_t t, int64_t b, int64_t u) const {
    const int64_t n = H_ - u;
    if (b < p_.sequence.continued_from(t))
      return load(p_.cells + (p_.sequence.row(p_.sequence.before(t)) + b) * H_ + u, n);
    return enter<Math>(masks_.dead_units(), T(1), masks_.dead(b, u), load(p_.c0 + b * H_ + u, n));
  }

  // What the steps of a chunk add to the gradients of x and of the weights.
  void add_gradients() {
    const int64_t rows = chunk_.rows, width = NV * H_;
    const T* x = p_.x + chunk_.row * p_.inputs;
    if (p_.dx) input_gradient(p_.parallel, gradients_, rows, width, *w_ih_, p_.dx + chunk_.row * p_.inputs);
    const bool first = chunk_.end == p_.sequence.steps;
    if (p_.dw_ih || p_.dw_hh || p_.db) {
      dw_ih_.chunk(x, rows);
      dw_hh_.chunk(operand_.get(), rows);
      add_weight_gradients<T>(p_.parallel, gradients_, rows, width, width, width, first,
                              {{&dw_ih_, p_.db, 0, width, 0}, {&dw_hh_, nullptr, 0, width, 0}});
    }
    if (p_.dw_hr) {
      dw_hr_.chunk(outputs_.get(), rows);
      add_weight_gradients<T>(p_.parallel, dprojected_.get(), rows, P_, P_, P_, first, {{&dw_hr_, nullptr, 0, P_, 0}});
    }
  }

  // From the gates of the first step to h_0 and c_0.
  void leave() {
    const int64_t n = p_.sequence.active(p_.sequence.time(0));
    p_.parallel.each(of_h_.tiles, NV * H_ * P_, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile)
        product(
            of_h_, tile, 0, n, [&](int64_t b) { return &later_[b * NV * H_]; }, &w_hh_[of_h_.start(tile, NV * H_)],
            NV * H_, [&](int64_t b, int64_t u, V sum) { leave_h(b, u, sum); });
    });
    for (int64_t b = 0; b < B_; ++b)
      for (int64_t u = 0; u < H_; u += LANES) {
        const V dc = load(&dc_[b * H_ + u], H_ - u);
        store(p_.dc0 + b * H_ + u, enter<Math>(masks_.dead_units(), T(1), masks_.dead(b, u), dc), H_ - u);
      }
  }
  void leave_h(int64_t b, int64_t u, V through_u) {
    const int64_t n = P_ - u;
    store(p_.dh0 + b * P_ + u, load(&dh_[b * P_ + u], n) + masks_.hidden(b, u, through_u), n);
  }

  void mask_gradients() {
    if (p_.dw_ih) mask_gradient(p_.parallel, m_ih_, p_.dw_ih);
    if (p_.dw_hh) mask_gradient(p_.parallel, m_hh_, p_.dw_hh);
    if (p_.dw_hr) mask_gradient(p_.parallel, m_hr_, p_.dw_hr);
  }

  const LstmBackward<T>& p_;
  const int64_t H_, P_, B_, most_, largest_;
  const int groups_;
  const StateSites<Math> sites_;
  const StateMasks<T> masks_;
  const MaskedWeight<T> m_ih_, m_hh_, m_hr_;
  const Columns of_h_, of_outputs_;
  Buffer<T> w_hh_, w_hr_;
  std::unique_ptr<ColumnTiles<T>> w_ih_;  // where dx is wanted
  Buffer<T> dgates_;      // [rows of a chunk, 4H]: gradients at the pre-activations; nothing where gates come again
  Buffer<T> later_;       // [B, 4H]: those of the step after the chunk
  Buffer<T> dh_, dc_;     // [B, P], [B, H]: carried from step to step; each unit is touched by its owner alone
  Buffer<T> operand_;     // [rows of a chunk, P]: what the recurrent product read
  Buffer<T> dprojected_;  // [rows of a chunk, P]: with a projection, gradients at its product
  Buffer<T> outputs_;     // [rows of a chunk, H]: what the projection read
  WeightGradient<T> dw_ih_, dw_hh_, dw_hr_;
  Buffer<T> bias_;
  std::unique_ptr<GatesAgain<NV, T>> again_;  // where the forward kept no gates
  Chunk chunk_{};
  const T* gates_ = nullptr;  // of the chunk, activated
  T* gradients_ = nullptr;    // of the chunk, at its pre-activations
};
