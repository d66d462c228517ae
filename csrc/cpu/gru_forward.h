// GRU (reset after the recurrent product), forward: one pass over time. See lstm_forward.h.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.
//
// With cell dropout the state is kept unscaled, and everything that reads it, the recurrent product, the output and the
// caller, sees it times read_scale.

// The biases of a GRU as its passes read them: both of r and z at once, that of n apart, since the reset gate is
// applied to the recurrent one alone.
template <class T>
class GruBias {
 public:
  GruBias(const T* b_ih, const T* b_hh, int64_t units) : with_input_(scratch<T>(3 * units)) {
    for (int64_t i = 0; i < 3 * units; ++i) with_input_[i] = !b_ih ? T(0) : i < 2 * units ? b_ih[i] + b_hh[i] : b_ih[i];
    of_n_ = b_hh ? b_hh + 2 * units : nullptr;
  }
  const T* with_input() const { return with_input_.get(); }  // [3H]
  FRD_MEMBER Vec<T> of_n(int64_t u, int64_t n) const { return of_n_ ? load(of_n_ + u, n) : Vec<T>{}; }

 private:
  Buffer<T> with_input_;
  const T* of_n_;
};

template <class T>
class GruForwardPass {
  using V = Vec<T>;
  using Math = SimdMath<T>;
  static constexpr int NV = 3;

 public:
  explicit GruForwardPass(const GruForward<T>& p)
      : p_(p),
        H_(p.units),
        B_(p.sequence.batch),
        most_(chunk_rows<T>(p.sequence, NV * H_)),
        sites_(state_sites<Math>(p.masks.flags, p.masks.thresholds)),
        masks_(p.parallel, p.masks, B_, H_),
        bias_(p.b_ih, p.b_hh, H_),
        m_ih_(p.w_ih, NV * H_, p.inputs, FLAG_WEIGHT_IH, KIND_WEIGHT_IH, p.masks),
        w_ih_(p.parallel, m_ih_, p.sparing ? sparing_packing(p, m_ih_) : Packing::AT_ONCE),
        w_hh_(
            pack_gates<NV>(p.parallel, MaskedWeight<T>(p.w_hh, NV * H_, H_, FLAG_WEIGHT_HH, KIND_WEIGHT_HH, p.masks))),
        buffer_(scratch<T>(p.gates ? 0 : largest_chunk(p.sequence, most_) * NV * H_)),
        read_(scratch<T>(2 * B_ * H_)),
        h_(scratch<T>(B_ * H_)) {
    for (int64_t b = 0; b < B_; ++b) enter_row(b);
  }

  void run() {
    Stopwatch watch;
    for (int64_t begin = 0; begin < p_.sequence.steps; begin = chunk_.end) {
      chunk_ = Chunk::from(p_.sequence, begin, most_);
      gates_ = p_.gates ? p_.gates + chunk_.row * NV * H_ : buffer_.get();
      input_product<NV>(p_.parallel, p_.x + chunk_.row * p_.inputs, chunk_.rows, w_ih_, bias_.with_input(), gates_);
      watch.lap(INPUT_PRODUCT);
      steps();
      watch.restart();
    }
  }

 private:
  void enter_row(int64_t b) {
    for (int64_t u = 0; u < H_; u += LANES) {
      const V h =
          enter<Math>(masks_.dead_units(), sites_.entry_scale, masks_.dead(b, u), load(p_.h0 + b * H_ + u, H_ - u));
      const V read = masks_.hidden(b, u, sites_.read_scale * h);
      store(&h_[b * H_ + u], h, H_ - u);
      for (int half = 0; half < 2; ++half) store(&read_[(half * B_ + b) * H_ + u], read, H_ - u);
    }
  }

  void steps() {
    const int64_t tiles = tiles_of(H_, LANES);
    const int groups = groups_for(p_.parallel, tiles, 6.0 * B_ * H_ * H_);
    Team(p_.parallel, chunk_.end - chunk_.begin, groups).run([&](int64_t step, int group) {
      const int64_t s = chunk_.begin + step;
      for (int64_t tile = share(tiles, group, groups); tile < share(tiles, group + 1, groups); ++tile)
        units(s, p_.sequence.time(s), tile * LANES);
    });
  }

  void units(int64_t s, int64_t t, int64_t u) {
    const int64_t n = H_ - u, row0 = p_.sequence.row(t);
    const T* read = &read_[(s % 2) * B_ * H_];
    const V bias = bias_.of_n(u, n);
    product<NV>(
        0, p_.sequence.active(t), [&](int64_t b) { return read + b * H_; }, &w_hh_[u * H_ * NV], H_,
        [&](int64_t b) {
          for (int v = 0; v < NV; ++v) prefetch<true>(gates_ + ((row0 - chunk_.row + b) * NV + v) * H_ + u, LANES);
          if (p_.resets) prefetch<true>(p_.resets + (row0 + b) * H_ + u, LANES);
          prefetch<true>(p_.out + (row0 + b) * H_ + u, LANES);
        },
        [&](int64_t b, const V* sums) {
          const int64_t row = row0 + b;
          T* gates = gates_ + (row - chunk_.row) * NV * H_ + u;
          GruGates<Math> g{load(gates, n) + sums[0], load(gates + H_, n) + sums[1], load(gates + 2 * H_, n),
                           sums[2] + bias};
          const Drops<Math> drops = masks_.drops(b, u, t);
          const V h_prev = load(&h_[b * H_ + u], n);
          const V h_new = gru_forward<Math>(sites_, drops, g, h_prev);
          const V h = Zone<Math>::mix(sites_.zone_h, drops.zone_h, h_prev, h_new);
          store(&h_[b * H_ + u], h, n);
          const V seen = sites_.read_scale * h;
          store(&read_[(((s + 1) % 2) * B_ + b) * H_ + u], masks_.hidden(b, u, seen), n);
          store(p_.out + row * H_ + u, sites_.unzoned ? sites_.read_scale * h_new : seen, n);
          if (p_.gates) {
            store(gates, g.r, n);
            store(gates + H_, g.z, n);
            store(gates + 2 * H_, g.n, n);
            store(p_.resets + row * H_ + u, g.u, n);
          }
          if (p_.states) store(p_.states + row * H_ + u, h, n);
          if (ends(p_.sequence, t, b)) store(p_.h_n + b * H_ + u, seen, n);
        });
  }

  const GruForward<T>& p_;
  const int64_t H_, B_, most_;
  const StateSites<Math> sites_;
  const StateMasks<T> masks_;
  const GruBias<T> bias_;
  const MaskedWeight<T> m_ih_;
  const GateTiles<NV, T> w_ih_;
  Buffer<T> w_hh_;
  Buffer<T> buffer_;  // [rows of a chunk, 3H]: gates that are not kept
  Buffer<T> read_;    // [2, B, H]: h as the recurrent product sees it, of this step and of the next
  Buffer<T> h_;       // [B, H]: the state; each unit is touched by its owner alone
  Chunk chunk_{};
  T* gates_ = nullptr;  // of the chunk: in, W_ih x + b; out, activated
};
